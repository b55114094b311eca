// Operators' verbs on this node's queues, and what the control plane says about suspensions and bounces.
import BatonCore
import BatonDelivery
import BatonModel
import BatonQueue
import BatonRuntime
import Synchronization

/// Runs what it is given one after the other, in the order of the calls.
actor Turns {
    private var tail: Task<Void, Never>?

    func run<T: Sendable>(_ body: @escaping @Sendable () async throws -> T) async throws -> T {
        let before = tail
        let work = Task {
            await before?.value
            return try await body()
        }
        tail = Task { _ = await work.result }
        return try await work.value
    }
}

extension RelayNode {
    /// How long `follow` waits for room among the operations under way.
    static let followWait = TimeSpan.seconds(30)
    private static let followPause: UInt64 = 20_000_000

    /// One verb on every partition. Durable here before it answers.
    func perform(_ command: AdminCommand) async throws -> OperationReport {
        guard command.verb != .retry else { return try await apply(command) }
        return try await holds.turns.run { try await self.apply(command) }
    }

    private func apply(_ command: AdminCommand) async throws -> OperationReport {
        let selector = NodeInspector.selector(command.selector)
        let until = command.shared.map(\.until) ?? command.duration.map { time.now() + $0 }
        var ids: [String] = []
        var report = OperationReport(operation: "", verb: command.verb.rawValue, count: 0, inFlight: 0, done: true)
        for (index, loop) in loops.enumerated() {
            let progress: OperationProgress
            do {
                switch command.verb {
                case .retry: progress = try await loop.partition.retry(selector)
                case .bounce:
                    progress = try await loop.partition.bounce(
                        selector, reason: Array(command.reason.utf8), report: command.report,
                        cutoff: command.shared?.cutoff ?? .distantFuture)
                case .suspend: progress = try await loop.partition.suspend(selector, until: until)
                case .resume: progress = try await loop.partition.resume(selector)
                }
            } catch {
                throw ProblemReport(503, "Service Unavailable", "too many operations or suspensions at a time")
            }
            ids.append("\(index)-\(progress.id)")
            report.count += progress.count
            report.inFlight += progress.inFlight
            report.done = report.done && progress.done
        }
        report.operation = ids.joined(separator: ".")
        switch command.verb {
        case .retry: for loop in loops { loop.dispatcher.resumeSites() }
        case .bounce: if let hold = command.shared { note(hold, at: command.revision) }
        case .suspend:
            if let hold = command.shared, let revision = command.revision {
                note(hold, at: revision)
            } else {
                holds.book.withLock { $0.forgotten(command.selector) }
            }
            try await saveHolds()
        case .resume:
            holds.book.withLock {
                $0.forgotten(command.selector, at: command.revision, everything: command.selector == .all)
            }
            try await saveHolds()
        }
        return report
    }

    private func note(_ hold: SharedHold, at revision: UInt64?) {
        holds.book.withLock { $0.applied(hold, at: revision) }
    }

    private func saveHolds() async throws {
        let inForce = await loops[0].partition.holds()
        let store = holds
        try await Self.blocking { try store.save(inForce) }
    }

    /// Brings this node's suspensions and bounces to what the control plane has. For the cluster runtime: after the start and
    /// before the first dot of a segment taken over (`again`, with a linearizable read made after the segment became this
    /// node's), and whenever the keys change. A snapshot older than what was applied already changes nothing. Throws where the
    /// queue has no room for `followWait`, or the file cannot be written; then it has to be called again.
    package func follow(_ shared: SharedHolds, again: Bool) async throws {
        try await holds.turns.run {
            let steps = self.holds.book.withLock { $0.steps(toward: shared, at: self.time.now(), again: again) }
            var waiting: [HoldBook.Step] = []
            for step in steps {
                do {
                    try await self.take(step)
                } catch OperationRefusal.tooManyHolds { waiting.append(step) }
            }
            // The resumptions may have made room.
            for step in waiting { try await self.take(step) }
            self.holds.book.withLock { $0.followed(shared) }
            if steps.contains(where: { if case .bounce = $0 { false } else { true } }) { try await self.saveHolds() }
        }
    }

    private func take(_ step: HoldBook.Step) async throws {
        for loop in loops {
            let partition = loop.partition
            switch step {
            case .resume(let selector):
                try await Self.patiently(for: Self.followWait, time) {
                    _ = try await partition.resume(NodeInspector.selector(selector), exactly: true)
                }
            case .suspend(let hold):
                guard let selector = hold.selector else { continue }
                try await Self.patiently(for: Self.followWait, time) {
                    _ = try await partition.suspend(NodeInspector.selector(selector), until: hold.until)
                }
            case .bounce(let hold):
                guard let selector = hold.selector else { continue }
                try await Self.patiently(for: Self.followWait, time) {
                    _ = try await partition.bounce(
                        NodeInspector.selector(selector), reason: Array(hold.reason.utf8), report: hold.report,
                        cutoff: hold.cutoff)
                }
            }
        }
        holds.book.withLock { book in
            switch step {
            case .resume(let selector): book.forgotten(selector)
            case .suspend(let hold), .bounce(let hold): book.applied(hold, at: nil)
            }
        }
    }

    /// While the operations of a partition are all under way, a further one waits.
    static func patiently(
        for span: TimeSpan, _ time: any TimeSource, _ work: @Sendable () async throws -> Void
    ) async throws {
        let end = time.now() + span
        while true {
            do {
                return try await work()
            } catch OperationRefusal.tooManyOperations where time.now() < end {
                try await Task.sleep(nanoseconds: followPause)
            }
        }
    }
}
