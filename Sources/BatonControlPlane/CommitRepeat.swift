// Settling a transaction whose outcome is unknown: the same compare-and-set again until it is answered.
import BatonCore
import BatonRuntime

/// How a repeated transaction ended.
package enum ControlSettlement: Sendable {
    /// It is written. The header is absent where an earlier try did it, found by its values.
    case committed(ControlHeader?)
    /// It is not there now. `afterUnknown`: an earlier try may have been written, and overwritten since.
    case conflict(current: [ControlEntry], afterUnknown: Bool)
    /// Certainly without effect.
    case refused(ControlRefusal, String)
    /// The deadline passed; it may still take effect.
    case unknown(String)
}

/// The decision after each answer. Pure: the shell sends, waits and reads the clock.
package struct CommitRepeatState: Sendable {
    package enum Event: Sendable {
        case answered(Result<ControlCommit, ControlFailure>)
        /// What the written keys hold, asked for after a conflict.
        case read(Result<[ControlEntry], ControlFailure>)
    }

    package enum Action: Sendable {
        case commitAgain(after: TimeSpan)
        /// The written keys, to see whether an earlier try did it.
        case read(after: TimeSpan)
        case end(ControlSettlement)
    }

    private let transaction: ControlTransaction
    private let deadline: Instant
    private var wait = ControlLimits.repeatFirst
    /// Some try may have been applied.
    private var unknown: String?

    package init(_ transaction: ControlTransaction, deadline: Instant) {
        self.transaction = transaction
        self.deadline = deadline
    }

    package mutating func receive(_ event: Event, at now: Instant) -> Action {
        switch event {
        case .answered(.success(.committed(let header))): return .end(.committed(header))
        case .answered(.success(.conflict(_, let current))):
            guard unknown == nil else { return .read(after: .zero) }
            return .end(.conflict(current: current, afterUnknown: false))
        case .answered(.failure(.unknown(let text))):
            unknown = text
            return again(at: now) { .commitAgain(after: $0) }
        case .answered(.failure(.refused(let refusal, let text))):
            // A refusal of this try says nothing about an earlier one.
            guard unknown != nil else { return .end(.refused(refusal, text)) }
            return again(at: now) { .commitAgain(after: $0) }
        case .read(.failure): return again(at: now) { .read(after: $0) }
        case .read(.success(let entries)):
            let found = Dictionary(entries.map { ($0.key, $0) }) { first, _ in first }
            let ours = transaction.writes.allSatisfy { write in
                switch write {
                case .put(let key, let value, let lease):
                    found[key].map { $0.value == value && $0.lease == lease } ?? false
                case .delete(let key): found[key] == nil
                }
            }
            // Deletions alone prove nothing: somebody else's deletion looks the same, and does the same.
            return .end(ours ? .committed(nil) : .conflict(current: entries, afterUnknown: true))
        }
    }

    private mutating func again(at now: Instant, _ action: (TimeSpan) -> Action) -> Action {
        guard now + wait < deadline else { return .end(.unknown(unknown ?? "no answer in time")) }
        defer { wait = min(ControlLimits.repeatMax, wait + wait) }
        return action(wait)
    }
}

extension ControlPlane {
    /// Commits, and settles an unknown outcome by sending the same transaction again (DESIGN section 5, PROTOCOL A2). The values
    /// have to be unique, so that finding them proves that it was this transaction that wrote them; a transaction of
    /// deletions only is settled as committed when the keys are absent. After `deadline` no further try begins.
    package func commitRepeating(
        _ transaction: ControlTransaction, deadline: Instant, time: any TimeSource
    ) async -> ControlSettlement {
        var state = CommitRepeatState(transaction, deadline: deadline)
        var event = CommitRepeatState.Event.answered(await answer(of: transaction))
        while true {
            switch state.receive(event, at: time.now()) {
            case .end(let settlement): return settlement
            case .commitAgain(let wait):
                try? await Task.sleep(nanoseconds: UInt64(max(0, wait.nanoseconds)))
                event = .answered(await answer(of: transaction))
            case .read(let wait):
                if wait > .zero { try? await Task.sleep(nanoseconds: UInt64(wait.nanoseconds)) }
                event = .read(await read(transaction.writes.map(\.key)))
            }
        }
    }

    private func answer(of transaction: ControlTransaction) async -> Result<ControlCommit, ControlFailure> {
        do throws(ControlFailure) {
            return .success(try await commit(transaction))
        } catch {
            return .failure(error)
        }
    }

    /// Not at one revision, which does no harm: a value of ours that is found was written by us.
    private func read(_ keys: [ControlKey]) async -> Result<[ControlEntry], ControlFailure> {
        var entries: [ControlEntry] = []
        for key in keys {
            do throws(ControlFailure) {
                entries += try await get(key).entries
            } catch {
                return .failure(error)
            }
        }
        return .success(entries)
    }
}
