// Outcomes of other members, kept for the takeovers under way.
import BatonCore
import BatonModel
import NIOCore

/// Fetched once per member and drain epoch, and given to every try of the adoption: a member may be gone by the second one.
/// At most `DriverLimits.outcomeOctets` per member; only segments that are being taken over have a place.
struct GatheredOutcomes: Sendable {
    private struct Taken: Sendable {
        var epoch: UInt64
        var members: [(member: EnsembleMember, entries: ByteBuffer)] = []
    }

    private var segments: [SegmentID: Taken] = [:]

    /// What was fetched for an earlier epoch is of no use.
    mutating func begin(_ id: SegmentID, epoch: UInt64) {
        if segments[id]?.epoch != epoch { segments[id] = Taken(epoch: epoch) }
    }

    /// Replaces what the member gave before.
    mutating func add(_ entries: ByteBuffer, of member: EnsembleMember, _ id: SegmentID, epoch: UInt64) {
        guard segments[id]?.epoch == epoch else { return }
        segments[id]?.members.removeAll { $0.member == member }
        segments[id]?.members.append((member, entries))
    }

    func entries(_ id: SegmentID, epoch: UInt64) -> [ByteBuffer] {
        guard let taken = segments[id], taken.epoch == epoch else { return [] }
        return taken.members.map(\.entries)
    }

    /// Lets go of all segments for which the test does not hold.
    mutating func keep(where needed: (SegmentID, UInt64) -> Bool) {
        guard !segments.isEmpty else { return }
        segments = segments.filter { needed($0.key, $0.value.epoch) }
    }
}
