// Parts of one message that a takeover brought to one disk: a report about one of them says nothing about another.
import BatonCore
import BatonModel
import BatonTestKit
import Testing

@testable import BatonSpool

extension Mail {
    fileprivate init(_ whole: Mail, part: [UInt32]) {
        number = whole.number
        body = whole.body
        envelope = whole.envelope.part(part, submit: nil)
    }
}

@Test func reportAboutOnePartEndsAnother() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let whole = Mail(1, recipients: 4)
    let first = Mail(whole, part: [0, 2])
    let second = Mail(whole, part: [1, 3])
    rig.store(first, sink, token: 1)
    rig.store(second, sink, token: 2)
    rig.store(Mail(3, subjects: [ReportSubject(message: whole.envelope.id, recipient: 1, kind: .failure)]), sink)
    // Killed here: the report is durable, its outcome is not.
    let again = try Rig(on: disk.reopened(), seed: 2)
    let live = again.jobs.messages.filter { $0.envelope.id == whole.envelope.id }
    let left = live.flatMap { message in
        (message.progress ?? []).map { message.envelope.number(of: $0.recipient) }
    }
    #expect(left.sorted() == [0, 2, 3], "recipient 1 alone is final")
    #expect(live.allSatisfy { $0.envelope.numbers?.count == 2 })
}

@Test func withdrawnCopyComesBackAfterARestart() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let mail = Mail(1, recipients: 2)
    let ref = try #require(rig.store(mail, sink))
    rig.record(ref, recipient: 0, .withdrawn)
    rig.record(ref, recipient: 1, .withdrawn)
    rig.ticks(3)
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.message(mail.envelope.id) == nil)
    #expect(again.jobs.outcomes.allSatisfy { $0.outcome.verdict == .withdrawn })
}
