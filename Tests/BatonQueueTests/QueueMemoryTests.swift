// What a million queued recipients cost, and that looking for one of them stays cheap.
import BatonCore
import BatonModel
import Glibc
import Testing

@testable import BatonQueue

@Test func jobSlotOutgrowsItsCacheLine() {
    print("job slot \(MemoryLayout<JobSlot>.size) bytes, message entry \(MemoryLayout<MessageEntry>.stride) bytes")
    #expect(MemoryLayout<JobSlot>.size <= 64)
    #expect(MemoryLayout<JobSlot>.stride == 64)
    #expect(MemoryLayout<MessageEntry>.stride <= 96)
}

private func residentSetBytes() -> Int {
    guard let file = fopen("/proc/self/statm", "r") else { return 0 }
    defer { fclose(file) }
    var total: Int32 = 0
    var resident: Int32 = 0
    _ = withUnsafeMutablePointer(to: &total) { total in
        withUnsafeMutablePointer(to: &resident) { resident in
            withVaList([total, resident]) { vfscanf(file, "%d %d", $0) }
        }
    }
    return Int(resident) * 4_096
}

@Test(.timeLimit(.minutes(2))) func millionJobsOutgrowTheirMemory() {
    // 100,000 messages of 10 recipients in 5,000 domains, none resident.
    let harness = Harness()
    harness.autoSite = siteA
    let before = residentSetBytes()
    let jobs = 1_000_000
    let variants = (0..<500).map { variant in
        (0..<10).map { EnvelopeRecipient(address: address("u@d\(variant * 10 + $0).test")) }
    }
    for number in 0..<(jobs / 10) {
        let envelope = Envelope(
            id: messageID(UInt32(number)), arrival: start, sender: nil, recipients: variants[number % 500],
            traits: .empty)
        harness.receive(
            AcceptedMessage(
                ref: StoredMessageRef(segment: 0, record: UInt32(number)), envelope: envelope, body: nil, progress: nil,
                receptionRecorded: true))
    }
    #expect(harness.jobCount == jobs)
    let accounted = harness.state.slab.bytes + harness.state.messages.bytes
    let grown = residentSetBytes() - before
    print("1,000,000 jobs: \(accounted / jobs) bytes a job in tables, resident set grew by \(grown / jobs) a job")
    #expect(accounted / jobs <= 80)
    #expect(harness.show(77_777).count == 10)
}

@Test func idIndexLosesAnEntry() {
    var random = SplitMix64(seed: 11)
    var table = MessageTable()
    var known: [UInt64: UInt32] = [:]
    for step in 0..<60_000 {
        if random.next() % 3 > 0 || known.isEmpty {
            let id = MessageID(high: 5, low: UInt64(step))
            known[UInt64(step)] = table.add(
                MessageEntry(
                    ref: StoredMessageRef(segment: 0, record: 0), id: id, arrival: start, senderClass: 0, senderHash: 0,
                    senderDomainHash: 0, serial: 0, size: 0, isReport: false, isSilent: false))
        } else if let victim = known.keys.first {
            if let index = known.removeValue(forKey: victim) { table.remove(index) }
            let found = table.all(MessageID(high: 5, low: victim)).first
            #expect(found == nil)
        }
    }
    for (low, index) in known {
        let found = table.all(MessageID(high: 5, low: low)).first
        #expect(found == index)
    }
    let live = table.live
    #expect(live == known.count)
}
