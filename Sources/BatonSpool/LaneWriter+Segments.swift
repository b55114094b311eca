// Rolling segments, and the streams that keep a rolled one lingering.
import BatonCore
import BatonModel
import BatonRuntime
import NIOCore
import Synchronization

/// A large body that is arriving. Its fragments and its envelope stand in one segment.
struct FragmentStream: Sendable {
    let sink: any SubmissionResultReceiving
    var segment: UInt32?
    var extents: [BodyExtent] = []
    /// Fragments taken so far, written or in the chunk being formed.
    var fragments: UInt32 = 0
    var length = 0
    var crc: UInt32 = 0
    var refusal: SubmissionRefusal?

    init(sink: any SubmissionResultReceiving) {
        self.sink = sink
    }

    var failed: Bool { refusal != nil }
    /// Raw octets whose chunks are written.
    private(set) var stored = 0

    mutating func written(_ extent: BodyExtent) {
        extents.append(extent)
        stored += Int(extent.rawLength)
    }
}

extension LaneWriter {
    mutating func rollIfDue(at now: Instant) {
        guard let segment = open, let first = segment.firstChunkAt else { return }
        if segment.offset >= Int64(configuration.segmentSize) || now - first >= configuration.segmentAge {
            roll(at: now)
        }
    }

    /// Goes on in the segment that was registered ahead. Without one the open segment outgrows its size: neither a slow
    /// disk nor a control plane that is away stops mail (DESIGN section 5).
    mutating func roll(at now: Instant) {
        guard let next = shared.take() else {
            keeper.deliver(CollectionOfOne(.needSegment))
            return
        }
        if let old = open {
            if old.streams > 0 {
                lingering.append(old)
                shedLingering(at: now)
            } else {
                retire(old, at: now)
            }
        }
        open = next
        shared.mayAppend.store(true, ordering: .relaxed)
        keeper.deliver(CollectionOfOne(.needSegment))
    }

    /// The open segment, if a cleaning's `bytes` fit into it; rolls for them. Not sure: other mail may come between.
    mutating func segment(withRoomFor bytes: Int64, at now: Instant) -> SegmentID? {
        let wanted = Self.room(for: bytes)
        let size = Int64(configuration.segmentSize)
        if let full = open, full.offset > 0, full.offset + wanted > size { roll(at: now) }
        results.deliver()
        guard let open, open.offset == 0 || open.offset + wanted <= size else { return nil }
        return open.id
    }

    /// Past the bound the streams of the segment that has lingered longest are refused.
    private mutating func shedLingering(at now: Instant) {
        while lingering.count > SpoolLimits.lingeringSegments, let oldest = lingering.first {
            for (id, stream) in streams where stream.segment == oldest.handle && !stream.failed {
                refuse(id, .overloaded)
            }
            lingering.removeAll { $0.handle == oldest.handle }
            retire(oldest, at: now)
        }
    }

    /// Nothing is appended to it any more: it is sealed where it ends once everything in it is acknowledged or refused.
    mutating func retire(_ segment: SegmentFile, at now: Instant) { acknowledger.roll(segment, at: now) }

    /// A backup of the open segment is lost: nothing of it would be acknowledged any more.
    mutating func leaveIfClosed(at now: Instant) {
        guard let old = open, !shared.dead.load(ordering: .relaxed) else { return }
        guard !shared.state.withLock({ $0.acknowledges(old.id) }) else {
            // Whoever shut the door did so for a segment that is left already, or for one that was only registered ahead.
            if !shared.mayAppend.load(ordering: .relaxed) { shared.mayAppend.store(true, ordering: .relaxed) }
            return
        }
        for (id, stream) in streams where stream.segment == old.handle && !stream.failed { refuse(id, .storageFailed) }
        roll(at: now)
    }

    /// The stream is committed, abandoned or lost; its segment may have lingered for it.
    mutating func close(stream id: FragmentStreamID, at now: Instant) {
        guard let stream = streams.removeValue(forKey: id) else { return }
        release(stream.segment, at: now)
    }

    private mutating func release(_ handle: UInt32?, at now: Instant) {
        guard let handle else { return }
        if open?.handle == handle {
            open?.streams -= 1
        } else if let index = lingering.firstIndex(where: { $0.handle == handle }) {
            lingering[index].streams -= 1
            if lingering[index].streams <= 0 {
                retire(lingering[index], at: now)
                lingering.remove(at: index)
            }
        }
    }

    /// Tells the stream's sink once that it is lost; what follows on it is ignored until it is abandoned.
    mutating func refuse(_ id: FragmentStreamID, _ reason: SubmissionRefusal) {
        guard let stream = streams[id], !stream.failed else { return }
        streams[id]?.refusal = reason
        results.add(FragmentResult(stream: id, written: stream.stored, refusal: reason), to: stream.sink)
    }
}
