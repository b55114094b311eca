// What the driver has under way with other members: FETCHes by request number, copies for joining members by run.
import BatonCore
import BatonModel
import BatonPeer
import BatonSpool
import NIOCore

/// Octets of another member's copy that are asked for, piece by piece.
struct FetchRun: Sendable {
    enum Purpose: Sendable {
        case outcomes
        case repair(upTo: Int64)
    }

    let segment: SegmentID
    let epoch: UInt64
    let member: EnsembleMember
    let purpose: Purpose
    var offset: Int64
    var collected = ByteBuffer()
    var askedAt: Instant
    /// The first page of a repair, which is written last.
    private(set) var head: (offset: Int64, octets: ByteBuffer)?

    var part: SegmentPart {
        if case .outcomes = purpose { .outcomes } else { .segment }
    }

    /// What of a piece of a repair is written now. A copy whose tail is not valid has to stay so until all of it is there: with half
    /// of it, it would read like one that is whole, and set the sealed length alone (PROTOCOL T1). So the page in which the first
    /// missing chunk begins is written last, in one write, after everything behind it is fdatasync'ed.
    mutating func written(_ piece: ByteBuffer, at offset: Int64) -> (offset: Int64, octets: ByteBuffer) {
        guard head == nil else { return (offset, piece) }
        var rest = piece
        let page = rest.readSlice(length: min(ChunkHeader.alignment, rest.readableBytes)) ?? ByteBuffer()
        head = (offset, page)
        return (offset + Int64(page.readableBytes), rest)
    }
}

/// FETCHes without an answer. Each ends once: answered, withdrawn, or overdue.
struct FetchRuns: Sendable {
    private var runs: [UInt64: FetchRun] = [:]
    private var next: UInt64 = 1

    /// - Returns: the request's number; never 0, which is that of pieces nobody asked for.
    mutating func begin(_ run: FetchRun) -> UInt64 {
        defer { next += 1 }
        runs[next] = run
        return next
    }

    mutating func withdraw(_ request: UInt64) { runs[request] = nil }

    /// The fetch that this piece answers, which is under way no more. A piece that is no answer to it changes nothing: the right
    /// one may still come, and if not the fetch is overdue some time, so that whoever waits for it is told.
    mutating func answered(by piece: BatonPeer.CopyPart, from node: NodeID) -> FetchRun? {
        guard let run = runs[piece.request], run.member.node == node, piece.segment == run.segment,
            piece.offset == run.offset, piece.part == run.part
        else { return nil }
        runs[piece.request] = nil
        return run
    }

    mutating func overdue(at now: Instant) -> [FetchRun] {
        let late = runs.filter { now - $0.value.askedAt > DriverLimits.fetchDeadline }
        for request in late.keys { runs[request] = nil }
        return Array(late.values)
    }
}

/// A copy for a joining member.
struct CopyRun: Sendable {
    /// Tells a run of a segment from an earlier one, whose reads may still be on their way.
    let number: UInt64
    let key: SegmentKey
    let joiner: EnsembleMember
    let length: Int64
    fileprivate(set) var offset: Int64 = 0
    fileprivate(set) var reading = 0
    /// Pieces that were read and not yet taken by the transport, in order.
    var waiting: [(offset: Int64, octets: ByteBuffer)] = []

    var isIdle: Bool { reading == 0 && waiting.isEmpty }
}

/// Copies under way, one for each segment at most.
struct CopyRuns: Sendable {
    private var runs: [SegmentID: CopyRun] = [:]
    private var last: UInt64 = 0

    var segments: [SegmentID] { Array(runs.keys) }

    subscript(_ id: SegmentID) -> CopyRun? { runs[id] }

    /// In place of a run of the same segment.
    mutating func begin(_ key: SegmentKey, to joiner: EnsembleMember, length: Int64) {
        last += 1
        runs[key.id] = CopyRun(number: last, key: key, joiner: joiner, length: length)
    }

    mutating func end(_ id: SegmentID) { runs[id] = nil }

    /// The pieces to be read next, each of which is given to `read` later.
    mutating func reads(_ id: SegmentID) -> [(offset: Int64, count: Int)] {
        guard var run = runs[id] else { return [] }
        var pieces: [(offset: Int64, count: Int)] = []
        while pieces.count < DriverLimits.piecesPerTick, run.offset < run.length {
            let count = min(run.length - run.offset, Int64(DriverLimits.pieceOctets))
            pieces.append((run.offset, Int(count)))
            run.offset += count
            run.reading += 1
        }
        runs[id] = run
        return pieces
    }

    enum Read {
        /// It was asked for by a run that is over.
        case late
        case taken
        /// Nothing more can be read: the run is over.
        case failed(CopyRun)
    }

    mutating func read(_ id: SegmentID, run number: UInt64, at offset: Int64, _ octets: ByteBuffer?) -> Read {
        guard var run = runs[id], run.number == number else { return .late }
        run.reading -= 1
        guard let octets, octets.readableBytes > 0 else {
            runs[id] = nil
            return .failed(run)
        }
        run.waiting.append((offset, octets))
        runs[id] = run
        return .taken
    }

    /// Gives the waiting pieces out in order, until one is refused.
    mutating func send(_ id: SegmentID, _ take: (CopyRun, Int64, ByteBuffer) -> Bool) {
        guard var run = runs[id] else { return }
        while let piece = run.waiting.first, take(run, piece.offset, piece.octets) { run.waiting.removeFirst() }
        runs[id] = run
    }
}
