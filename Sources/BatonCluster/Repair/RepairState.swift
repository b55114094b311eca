// Damaged chunks and who has them intact: which member is asked next, which octets are taken, and how it ends. Pure.
import BatonCore
import BatonModel
import BatonSpool
import NIOCore

/// Bounds of the repairs (docs/LIMITS.md, "Cluster").
package enum RepairLimits {
    /// Chunks under repair on this node; a further one begins when its message is read again.
    package static let underWay = 8
    /// A member that has not answered for so long is silent.
    package static let answer = TimeSpan.seconds(3)
    /// All members and the own disk together.
    package static let total = TimeSpan.seconds(15)
}

/// What a member says of a chunk.
package enum RepairAnswer: Hashable, Sendable {
    /// Octets of this segment from this place on.
    case octets(SegmentID, offset: Int64, ByteBuffer)
    /// Its copy of the chunk is damaged, or it has no file.
    case none
    /// It cannot tell now.
    case failed
}

package enum RepairEvent: Hashable, Sendable {
    /// The other members that can be asked now; `away`: there are more.
    case damaged(DamagedChunk, members: [EnsembleMember], away: Bool)
    case answered(request: UInt64, from: NodeID, RepairAnswer)
    /// The question could not be sent.
    case unsent(request: UInt64)
    case written(DamagedChunk, CopyMend)
    case tick
}

package enum RepairAction: Hashable, Sendable {
    case ask(request: UInt64, DamagedChunk, of: EnsembleMember)
    /// Into the own file; answered by `written`.
    case write(DamagedChunk, ByteBuffer)
    case end(DamagedChunk, ChunkRepair)
}

/// One member after the other is asked for the chunk. What is taken is a whole chunk with its checksums, of this segment, at this place
/// and of this length; whether it is the one that was promised there the disk's thread sees, before it writes. A member that is
/// away, silent or cannot tell makes the end `unanswered`: only where all have said no is the chunk given up.
package struct RepairState: StateMachine {
    package typealias Event = RepairEvent
    package typealias Action = RepairAction

    private struct Run: Hashable, Sendable {
        let chunk: DamagedChunk
        let begunAt: Instant
        var left: [EnsembleMember]
        var unanswered: Bool
        var asked: Question?
    }

    private struct Question: Hashable, Sendable {
        let request: UInt64
        let node: NodeID
        let at: Instant
    }

    private var runs: [Run] = []
    private var lastRequest: UInt64 = 0

    package init() {}

    package var underWay: Int { runs.count }

    package mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        switch event {
        case .damaged(let chunk, let members, let away):
            guard !runs.contains(where: { $0.chunk.isSamePlace(as: chunk) }), runs.count < RepairLimits.underWay else {
                // Whoever waits is told; the next read begins anew.
                return actions.append(.end(chunk, .unanswered))
            }
            advance(Run(chunk: chunk, begunAt: now, left: members, unanswered: away), at: now, into: &actions)
        case .answered(let request, let node, let answer):
            guard let index = runs.firstIndex(where: { $0.asked?.request == request && $0.asked?.node == node })
            else { return }
            answered(at: index, answer, now, into: &actions)
        case .unsent(let request):
            guard let index = runs.firstIndex(where: { $0.asked?.request == request }) else { return }
            var run = runs.remove(at: index)
            run.unanswered = true
            advance(run, at: now, into: &actions)
        case .written(let chunk, let mend):
            guard let index = runs.firstIndex(where: { $0.chunk == chunk && $0.asked == nil }) else { return }
            let run = runs.remove(at: index)
            switch mend {
            case .mended: actions.append(.end(chunk, .repaired))
            case .other: advance(run, at: now, into: &actions)
            case .failed: actions.append(.end(chunk, .unanswered))
            }
        case .tick: tick(at: now, into: &actions)
        }
    }

    private mutating func answered(
        at index: Int, _ answer: RepairAnswer, _ now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        var run = runs[index]
        switch answer {
        case .octets(let segment, let offset, let octets):
            // An answer to another question: the right one may still come, and if not the member is silent.
            guard segment == run.chunk.segment, offset == run.chunk.offset else { return }
            runs.remove(at: index)
            run.asked = nil
            guard run.chunk.takes(octets) else { return advance(run, at: now, into: &actions) }
            runs.append(run)
            actions.append(.write(run.chunk, octets))
        case .none:
            runs.remove(at: index)
            advance(run, at: now, into: &actions)
        case .failed:
            runs.remove(at: index)
            run.unanswered = true
            advance(run, at: now, into: &actions)
        }
    }

    /// Asks the next member; without one it is over. The run is not among `runs`.
    private mutating func advance(_ run: Run, at now: Instant, into actions: inout ActionBuffer<Action>) {
        var run = run
        guard let member = run.left.first else {
            return actions.append(.end(run.chunk, run.unanswered ? .unanswered : .nowhere))
        }
        run.left.removeFirst()
        lastRequest += 1
        run.asked = Question(request: lastRequest, node: member.node, at: now)
        runs.append(run)
        actions.append(.ask(request: lastRequest, run.chunk, of: member))
    }

    private mutating func tick(at now: Instant, into actions: inout ActionBuffer<Action>) {
        for run in runs {
            if now - run.begunAt >= RepairLimits.total {
                runs.removeAll { $0.chunk == run.chunk }
                actions.append(.end(run.chunk, .unanswered))
            } else if let asked = run.asked, now - asked.at >= RepairLimits.answer {
                var silent = run
                silent.unanswered = true
                runs.removeAll { $0.chunk == run.chunk }
                advance(silent, at: now, into: &actions)
            }
        }
    }
}

extension DamagedChunk {
    fileprivate func isSamePlace(as other: DamagedChunk) -> Bool { segment == other.segment && offset == other.offset }
}
