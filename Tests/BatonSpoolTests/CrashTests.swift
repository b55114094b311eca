// Power loss at every call and at random cuts: nothing acknowledged is lost or altered, every start succeeds.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// A run with mail of several sizes, outcomes, rolls, reclaim and a large upload. Marks each acknowledgement (token) and each
/// outcome that the disk must remember is counted by nobody: a lost outcome is a repeated delivery, not a loss.
struct CrashScenario {
    /// Token + this: all recipients of the message have a final outcome recorded (perhaps unsynced).
    static let finalOffset = 1_000_000

    static func run(on disk: MemoryDisk, seed: UInt64, rounds: Int) {
        var random = SplitMix64(seed: seed)
        guard let rig = try? Rig(on: disk, seed: seed) else { return }
        let sink = Sink { token in disk.mark(Int(token)) }
        var token: UInt64 = 0
        for round in 0..<rounds {
            if disk.crashed { return }
            var batch: [Submission] = []
            for _ in 0..<(random.next() % 5 + 1) {
                token += 1
                batch.append(mail(token).submission(token: token, sink: sink))
            }
            rig.spool.submit(batch)
            rig.spool.pump()
            if round % 7 == 3 { upload(&token, rig, sink) }
            // Some outcomes for earlier messages.
            for _ in 0..<4 {
                let chosen = random.next() % (token + 1)
                guard let ref = sink.ref(chosen), random.next() % 4 > 0 else { continue }
                disk.mark(Int(chosen) + finalOffset)
                rig.record(ref, .delivered)
            }
            if round % 3 == 0 {
                rig.events.sync()
                rig.ticks(1)
            }
        }
        if seed % 2 == 0 { rig.stop() }
    }

    static func mail(_ token: UInt64) -> Mail {
        if token % 50 == 49 { return Mail(token, size: 600_000) }
        return Mail(token, size: [300, 5000, 12_000, 40_000][Int(token % 4)])
    }

    private static func upload(_ token: inout UInt64, _ rig: Rig, _ sink: Sink) {
        token = (token / 50) * 50 + 49 + (token % 50 >= 49 ? 50 : 0)
        let mail = mail(token)
        let stream = rig.spool.openStream(sink: sink)
        rig.spool.append(mail.body, to: stream)
        rig.spool.pump()
        rig.spool.submit([
            Submission(envelope: mail.envelope, body: .fragments(stream), token: token, sink: sink)
        ])
        rig.spool.pump()
        token += 1
    }

    /// Every message acknowledged before the cut is there, unaltered, unless an outcome was recorded for it.
    static func check(_ disk: MemoryDisk, acknowledged: Set<Int>, final: Set<Int>, _ what: String) {
        let rig: Rig
        do {
            rig = try Rig(on: disk, seed: 4242)
        } catch {
            Issue.record("start failed at \(what): \(error)")
            return
        }
        // A power cut may leave a hole among outcomes that were never synced: those recipients may be sent to again, which is
        // told and allowed. Nothing else may be called damage.
        let damage = rig.spool.recovery.damage.filter { !$0.hasPrefix("outcome log of") }
        #expect(damage.isEmpty, "\(what): \(damage)")
        let found = Dictionary(
            rig.jobs.messages.map { ($0.envelope.id, $0) },
            uniquingKeysWith: { first, _ in
                Issue.record("\(what): message \(first.envelope.id.low) twice")
                return first
            })
        for token in acknowledged where !final.contains(token) {
            guard let message = found[Mail.id(UInt64(token))] else {
                Issue.record("\(what): message \(token) was acknowledged and is lost")
                continue
            }
            let mail = mail(UInt64(token))
            guard case .message(let envelope, let body)? = rig.read(message.ref) else {
                Issue.record("\(what): message \(token) cannot be read")
                continue
            }
            #expect(envelope.recipients == mail.envelope.recipients)
            switch body {
            case .whole(let body): #expect(body.bytes == mail.body, "\(what): message \(token) altered")
            case .fragmented(_, let count):
                var all = ByteBuffer()
                for index in 0..<count {
                    guard case .fragment(var bytes)? = rig.read(message.ref, part: .fragment(index)) else { continue }
                    all.writeBuffer(&bytes)
                }
                #expect(all == mail.body, "\(what): message \(token) altered")
            }
        }
    }

    static func marks(_ journal: some Sequence<DiskOperation>) -> (acknowledged: Set<Int>, final: Set<Int>) {
        var acknowledged: Set<Int> = []
        var final: Set<Int> = []
        for case .mark(let value) in journal {
            if value >= finalOffset { final.insert(value - finalOffset) } else { acknowledged.insert(value) }
        }
        return (acknowledged, final)
    }
}

@Test func crashAfterAnyCallLosesNothingAcknowledged() {
    let whole = MemoryDisk()
    CrashScenario.run(on: whole, seed: 11, rounds: 10)
    for calls in stride(from: 0, to: whole.calls, by: fullDepth ? 1 : 7) {
        let disk = MemoryDisk()
        disk.crash(afterCalls: calls)
        CrashScenario.run(on: disk, seed: 11, rounds: 10)
        let journal = disk.journal
        let (acknowledged, final) = CrashScenario.marks(journal)
        // Once as a process kill (all writes survive), once as a power loss.
        CrashScenario.check(disk.reopened(), acknowledged: acknowledged, final: final, "kill after call \(calls)")
        if calls % 3 == 0 {
            let image = DiskImage.afterPowerLoss(journal, cut: journal.count, seed: UInt64(calls))
            CrashScenario.check(image, acknowledged: acknowledged, final: final, "power loss after call \(calls)")
        }
    }
}

@Test(arguments: [UInt64(21), 22])
func randomPowerCutsLoseNothingAcknowledged(seed: UInt64) {
    let disk = MemoryDisk()
    CrashScenario.run(on: disk, seed: seed, rounds: 40)
    let journal = disk.journal
    var random = SplitMix64(seed: seed)
    for _ in 0..<(fullDepth ? 500 : 40) {
        let cut = Int(random.next() % UInt64(journal.count + 1))
        let chance = random.next()
        let (acknowledged, final) = CrashScenario.marks(journal.prefix(cut))
        let image = DiskImage.afterPowerLoss(journal, cut: cut, seed: chance)
        CrashScenario.check(
            image, acknowledged: acknowledged, final: final, "seed \(seed), cut \(cut), chance \(chance)")
    }
}

@Test func crashDuringRecoveryIsHarmless() {
    let first = MemoryDisk()
    CrashScenario.run(on: first, seed: 31, rounds: 12)
    let (acknowledged, final) = CrashScenario.marks(first.journal)
    let probe = first.reopened()
    _ = try? Rig(on: probe, seed: 77)
    for calls in stride(from: 0, to: probe.calls, by: fullDepth ? 3 : 11) {
        let disk = first.reopened()
        disk.crash(afterCalls: calls)
        _ = try? Rig(on: disk, seed: 77)
        CrashScenario.check(
            disk.reopened(), acknowledged: acknowledged, final: final, "second crash after call \(calls)")
    }
}
