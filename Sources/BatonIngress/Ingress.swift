// The ingress as the node sees it: start, reload, stop.
import BatonCore
import BatonModel
import BatonRuntime
import BatonSMTP
import Glibc
import Logging
import NIOCore
import Synchronization

/// Which listener could not be bound, and why (address in use, not permitted, not ours).
package struct ListenerFailure: Error {
    /// `127.0.0.1:25`, `[::1]:25`.
    package let place: String
    package let cause: any Error

    init(_ listener: ListenerConfiguration, cause: any Error) {
        let host = listener.host.contains(":") ? "[\(listener.host)]" : listener.host
        self.place = "\(host):\(listener.port)"
        self.cause = cause
    }
}

/// All listeners and sessions of a node. Its methods may be called from anywhere; sessions live on the group's loops.
///
/// Nothing of it survives a crash: what was answered 250 is the spool's, the rest is the client's to send again.
package final class Ingress: Sendable {
    private let group: any EventLoopGroup
    private let homes: [IngressLoop]
    private let listeners: [SMTPListener]
    private let admission: Admission
    private let configuration: Mutex<IngressConfiguration>
    private let logger: Logger

    /// `group` is the data loops' group: its loops are where sessions run. `seed` should be random in production.
    package init(
        configuration: IngressConfiguration, group: any EventLoopGroup, submitter: any MessageSubmitting,
        events: any EventRecording, time: any TimeSource, seed: UInt64 = SystemRandom.uint64(), logger: Logger
    ) {
        var random = SplitMix64(seed: seed)
        let admission = Admission(limits: configuration.limits)
        var homes: [IngressLoop] = []
        for loop in group.makeIterator() {
            homes.append(
                IngressLoop(
                    loop: loop, submitter: submitter, events: events, admission: admission, time: time,
                    seed: random.next(), logger: logger))
        }
        let byLoop = Dictionary(homes.map { (ObjectIdentifier($0.loop), $0) }, uniquingKeysWith: { first, _ in first })
        let sessionIDs = SessionIDs(seed: random.next())
        self.group = group
        self.homes = homes
        self.admission = admission
        self.configuration = Mutex(configuration)
        self.logger = logger
        self.listeners = configuration.listeners.map { listener in
            SMTPListener(
                configuration: listener, state: Self.state(of: listener, in: configuration), homes: byLoop,
                admission: admission, sessionIDs: sessionIDs)
        }
    }

    private static func state(of listener: ListenerConfiguration, in configuration: IngressConfiguration)
        -> ListenerState
    {
        ListenerState(
            settings: configuration.settings(for: listener), policy: RelayPolicy(relayFrom: listener.relayFrom))
    }

    /// Binds all listeners, in order; the bound addresses in that order. If one fails, those before it are closed again, and
    /// the failure names the address.
    package func start() async throws(ListenerFailure) -> [SocketAddress] {
        var bound: [SocketAddress] = []
        for listener in listeners {
            do {
                bound.append(try await listener.start(on: group))
            } catch {
                for listener in listeners { await listener.stop() }
                throw ListenerFailure(listener.configuration, cause: error)
            }
        }
        return bound
    }

    /// New limits hold at once for admission and memory, and for the protocol in connections that come from now on; so do
    /// new `relay_from` networks, one entry for each listener in the order of the configuration (nil: as they are).
    package func update(limits: IngressLimits, relayFrom: [[AddressBlock]?]? = nil) {
        let new = configuration.withLock { configuration in
            configuration.limits = limits
            for (index, networks) in (relayFrom ?? []).enumerated() where index < configuration.listeners.count {
                configuration.listeners[index].relayFrom = networks
            }
            return configuration
        }
        admission.update(limits: limits)
        for (listener, entry) in zip(listeners, new.listeners) { listener.update(Self.state(of: entry, in: new)) }
    }

    package var connections: Int { admission.connections }
    package var memoryInUse: Int { admission.memoryInUse }

    /// Stops accepting; idle sessions get 421, those in DATA or BDAT may finish with their 250 within `grace`, then 421 and close.
    /// Returns when no session is left. Logs the ids whose final dot stays unanswered.
    package func stop(grace: TimeSpan) async {
        for listener in listeners { await listener.stop() }
        await withTaskGroup(of: Void.self) { group in
            for home in homes {
                group.addTask { await self.stop(home, grace: grace) }
            }
        }
    }

    private func stop(_ home: IngressLoop, grace: TimeSpan) async {
        let logger = logger
        let done = home.loop.flatSubmit {
            let emptied = home.shutdown()
            let timer = home.loop.scheduleTask(in: .nanoseconds(max(0, grace.nanoseconds))) {
                let unanswered = home.terminate()
                guard !unanswered.isEmpty else { return }
                let ids = unanswered.map(\.description).joined(separator: " ")
                logger.warning("Stopped before the spool had answered", metadata: ["smtp.ids": "\(ids)"])
            }
            emptied.whenComplete { _ in timer.cancel() }
            return emptied
        }
        try? await done.get()
    }
}
