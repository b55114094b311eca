// What operators ask of the queue: `await` it from any task; each call is one bounded slice on the loop.
import BatonCore
import BatonModel

extension QueuePartition {
    /// Totals of this partition, and a page of rows (at most `QueueLimits.pageRows`).
    package func summary(cursor: UInt64? = nil, limit: Int = 100) -> QueueSummary {
        state.summary(cursor: cursor, limit: limit)
    }

    /// A page of recipients. It may be empty and yet have a `next`.
    package func list(_ filter: QueueFilter, limit: Int, cursor: UInt64? = nil) -> QueuePage {
        state.list(filter, limit: limit, cursor: cursor)
    }

    /// The message's recipients in this partition; empty if there are none.
    package func show(_ id: MessageID) -> [QueueRow] { state.show(id) }

    /// Deferred mail of the selector goes out now, spread by 2 ms a recipient up to `retry.first`, under the same limits.
    package func retry(_ selector: QueueSelector) throws(OperationRefusal) -> OperationProgress {
        defer { perform() }
        return try state.retry(selector, at: time.now())
    }

    /// Ends mail of the selector that arrived by `cutoff` as `adminBounced`, with an NDR only if `report`. `reason` goes into
    /// events and NDR.
    package func bounce(
        _ selector: QueueSelector, reason: [UInt8] = [], report: Bool = false, cutoff: Instant = .distantFuture
    ) throws(OperationRefusal) -> OperationProgress {
        defer { perform() }
        return try state.bounce(selector, reason: reason, report: report, cutoff: cutoff, at: time.now())
    }

    /// Sets mail of the selector aside, new mail too, until `until` (nil: until `resume`). It still expires. Surviving a
    /// restart is the caller's part: keep `holds()`, and suspend again before recovery hands mail in.
    package func suspend(
        _ selector: QueueSelector, until: Instant? = nil
    ) throws(OperationRefusal) -> OperationProgress {
        defer { perform() }
        return try state.suspend(selector, until: until, at: time.now())
    }

    /// Ends the suspension of exactly this selector (`.all`: of every one, unless `exactly`). What no other suspension holds
    /// goes out as with `retry`.
    package func resume(
        _ selector: QueueSelector, exactly: Bool = false
    ) throws(OperationRefusal) -> OperationProgress {
        defer { perform() }
        return try state.resume(selector, exactly: exactly, at: time.now())
    }

    /// How far a verb has come; nil once it is forgotten (`QueueLimits.operations`).
    package func operation(_ id: UInt64) -> OperationProgress? { state.operation(id) }

    package func holds() -> [QueueHold] { state.holdList }

    /// Settings read again. What is in the wheel keeps its due time; expiry is judged by the new ages at once.
    package func update(_ configuration: QueueConfiguration) {
        var new = configuration
        new.seed = state.configuration.seed
        state.configuration = new
        gauges.update(new)
        perform()
    }

    /// The spool moved stored messages (PROTOCOL C2): what is handed out from now on names their new place.
    package func relocate(_ moves: [MessageMove]) {
        for move in moves { state.relocate(move.id, from: move.from, to: move.to) }
    }
}

/// A stored message's new place.
package struct MessageMove: Sendable {
    package let id: MessageID
    package let from: StoredMessageRef
    package let to: StoredMessageRef

    package init(id: MessageID, from: StoredMessageRef, to: StoredMessageRef) {
        self.id = id
        self.from = from
        self.to = to
    }
}
