// The composition root: makes the parts, binds their ports, starts them in order and stops them in the reverse one.
import BatonCluster
import BatonCore
import BatonDNS
import BatonDelivery
import BatonIngress
import BatonModel
import BatonQueue
import BatonRuntime
import BatonSpool
import CBatonSystem
import Logging
import NIOCore
import NIOPosix
import Synchronization

/// A running node. Made by `start`, ended by `stop`; nothing of it is on the hot path.
///
/// Order of start: lock the data directory, event log, spool (scan), loops, resolver, recovered mail into the queue (all of it
/// `start`), admin HTTP, listeners (`listen`). The listeners come last, so that the first client finds everything there. Stop
/// is the reverse.
package final class RelayNode: Sendable {
    package let configuration: NodeConfiguration
    package let time: SystemTimeSource
    let logger: Logger
    let group: MultiThreadedEventLoopGroup
    let directory: DataDirectory
    let spool: Spool
    let events: EventLog
    let gate: SubmissionGate
    let resolver: UnboundThread
    let permits: NodePermits
    let loops: [NodeLoop]
    let ingress: Ingress
    let holds: HoldStore
    let workers: WorkerPool
    /// Nil in a single node.
    let cluster: NodeCluster?
    let copies: CopyStore?
    package let eventSearch: EventSearch
    let current: CurrentConfiguration
    /// Nil in a single node.
    let quota: ClusterPermits?
    let phase = Mutex(NodePhase.starting)
    package let startedAt: Instant
    private let addresses = Mutex<[String]>([])

    private init(
        configuration: NodeConfiguration, time: SystemTimeSource, logger: Logger, group: MultiThreadedEventLoopGroup,
        directory: DataDirectory, spool: Spool, events: EventLog, gate: SubmissionGate, resolver: UnboundThread,
        permits: NodePermits, loops: [NodeLoop], ingress: Ingress, holds: HoldStore,
        current: CurrentConfiguration, quota: ClusterPermits?, cluster: NodeCluster?,
        copies: CopyStore?
    ) {
        self.quota = quota
        self.cluster = cluster
        self.copies = copies
        self.configuration = configuration
        self.time = time
        self.logger = logger
        self.group = group
        self.directory = directory
        self.spool = spool
        self.events = events
        self.gate = gate
        self.resolver = resolver
        self.permits = permits
        self.loops = loops
        self.ingress = ingress
        self.holds = holds
        let workers = WorkerPool(name: "worker", threads: 2, capacity: 64)
        self.workers = workers
        self.eventSearch = EventSearch(directory: events.directory, workers: workers)
        self.current = current
        self.startedAt = time.now()
    }

    // MARK: Start

    /// Does everything but taking mail (`listen`). Throws `NodeError`; what was started by then is stopped again.
    package static func start(_ configuration: NodeConfiguration, logger: Logger) async throws -> RelayNode {
        let time = SystemTimeSource()
        let disk = LinuxDisk()
        let directory: DataDirectory
        do {
            directory = try DataDirectory.open(
                path: configuration.node.dataDirectory, disk: disk, cluster: configuration.cluster?.name ?? "",
                nodeName: configuration.node.id, random: SystemRandom.uint64)
        } catch {
            throw NodeError("\(error)")
        }
        for note in directory.notes { logger.warning("Data directory repaired", metadata: ["note": "\(note)"]) }
        let count = configuration.loopCount(cores: System.coreCount)
        let group = MultiThreadedEventLoopGroup(numberOfThreads: count)
        var undo: [@Sendable () async -> Void] = [
            { directory.close() }, { try? await group.shutdownGracefully() },
        ]
        do {
            var cluster: NodeCluster?
            if let settings = configuration.cluster {
                let made = try NodeCluster.make(
                    settings, configuration, directory: directory, bulkLoop: group.any(), time: time, logger: logger,
                    onRestart: { reason in Reincarnation.begin(reason, logger: logger) })
                cluster = made
                undo.append { await made.stop(forGood: false) }
            }
            let (events, spool) = try open(
                configuration, directory: directory, disk: disk, cluster: cluster, time: time, logger: logger)
            undo.append { events.stop() }
            undo.append { spool.stop() }
            return try await assemble(
                configuration, directory: directory, spool: spool, events: events, group: group, count: count,
                cluster: cluster, time: time, logger: logger, undo: &undo)
        } catch {
            for step in undo.reversed() { await step() }
            throw error as? NodeError ?? NodeError("\(error)")
        }
    }

    private static func open(
        _ configuration: NodeConfiguration, directory: DataDirectory, disk: LinuxDisk, cluster: NodeCluster?,
        time: SystemTimeSource, logger: Logger
    ) throws -> (EventLog, Spool) {
        let events: EventLog
        do {
            events = try EventLog.open(
                directory: directory.path + "/events", disk: disk, configuration: configuration.eventSettings,
                nodeID: configuration.node.id, time: time, logger: logger)
        } catch {
            throw NodeError("event log in \(directory.path)/events cannot be opened: \(error)")
        }
        do {
            let spool = try Spool.open(
                directory: directory, configuration: configuration.spoolSettings, events: events, time: time,
                logger: logger, cluster: cluster?.spool, onFailure: { _ in })
            return (events, spool)
        } catch {
            events.stop()
            throw NodeError("\(error)")
        }
    }

    private static func assemble(
        _ configuration: NodeConfiguration, directory: DataDirectory, spool: Spool, events: EventLog,
        group: MultiThreadedEventLoopGroup, count: Int, cluster: NodeCluster?, time: SystemTimeSource, logger: Logger,
        undo: inout [@Sendable () async -> Void]
    ) async throws -> RelayNode {
        let resolver: UnboundThread
        do {
            resolver = try UnboundThread(configuration.resolverSettings, time: time, logger: logger)
        } catch {
            throw NodeError("resolver: \(error.text)", exitCode: 78)
        }
        undo.append { resolver.stop() }
        let eventLoops = (0..<count).map { _ in group.next() }
        let partitions = eventLoops.enumerated().map { index, loop in
            configuration.makePartition(index: index, of: count, on: loop, time: time, logger: logger)
        }
        let relay = IntakeRelay(events: events, partitions: partitions, outcomes: spool, time: time)
        let placement = cluster.map { cluster in
            NodePlacement(
                cluster, spool: spool, queue: relay, spreadRate: Double(cluster.settings.spreadRate), time: time)
        }
        let gate = SubmissionGate(spool: placement?.placer ?? spool, events: events, partitions: partitions)
        let permits = NodePermits(connections: configuration.delivery.connections)
        let quota = cluster.map { NodeQuota($0, time: time).permits(around: permits, configuration) }
        let current = CurrentConfiguration(configuration)
        let ports = NodePorts(
            submitter: spool, outcomes: spool, bodies: spool, events: events, permits: quota ?? permits,
            resolver: resolver, time: time, logger: logger, current: current, dots: cluster?.runtime.permission)
        var loops: [NodeLoop] = []
        for (partition, loop) in zip(partitions, eventLoops) {
            loops.append(try await configuration.makeLoop(partition, on: loop, ports: ports))
        }
        let holds = HoldStore(path: directory.path, disk: LinuxDisk(), logger: logger)
        try await holds.apply(to: partitions, now: time.now())
        let intake: any JobReceiving = placement?.held ?? relay
        let unreported = placement?.keys(before: relay) ?? relay
        try await Self.blocking { try spool.start(jobs: intake, unreported: unreported) }
        var copies: CopyStore?
        if let cluster {
            let store = CopyStore(
                directory: directory, configuration: configuration.spoolSettings, news: cluster.runtime, time: time,
                logger: logger)
            copies = store
            store.start()
            undo.append { store.stop() }
            cluster.runtime.bind(
                ClusterParts(
                    spool: spool, copies: store, disk: directory.disk, handle: { spool.ledger.handle(of: $0) }))
            placement?.bind()
            try await cluster.runtime.start()
        }
        let ingress = Ingress(
            configuration: configuration.ingressSettings, group: group, submitter: gate, events: events, time: time,
            logger: logger)
        return RelayNode(
            configuration: configuration, time: time, logger: logger, group: group, directory: directory,
            spool: spool, events: events, gate: gate, resolver: resolver, permits: permits, loops: loops,
            ingress: ingress, holds: holds, current: current, quota: quota, cluster: cluster, copies: copies)
    }

    /// Binds the listeners: from here on mail is taken. Throws `NodeError`; the caller then stops the node.
    package func listen() async throws(NodeError) {
        do {
            let bound = try await ingress.start()
            addresses.withLock { $0 = bound.map(Self.text) }
        } catch {
            throw NodeError("\(error.place): cannot listen: \(AdminServer.text(of: error.cause))")
        }
        phase.withLock { if $0 == .starting { $0 = .serving } }
    }

    /// `127.0.0.1:2525`, `[::1]:2525`.
    private static func text(_ address: SocketAddress) -> String {
        guard let host = address.ipAddress, let port = address.port else { return "?" }
        return host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }

    /// Runs what blocks on a thread of its own; start and stop only.
    static func blocking<T: Sendable>(_ work: @escaping @Sendable () throws -> T) async throws -> T {
        try await withCheckedThrowingContinuation { continuation in
            _ = DedicatedThread(name: "start-stop") { continuation.resume(with: Result { try work() }) }
        }
    }

    /// Where the listeners are bound.
    package var listenerAddresses: [String] { addresses.withLock { $0 } }

    // MARK: Stop

    /// Sessions in DATA finish with their 250, deliveries under way get their answer, both within `shutdown_grace`; then all is
    /// flushed. Idempotent.
    package func stop() async {
        let before = phase.withLock { phase in
            defer { phase = .stopping }
            return phase
        }
        guard before != .stopping else { return }
        // A start that failed says why in one line, and nothing else.
        var logger = logger
        if before == .starting { logger.logLevel = .warning }
        let grace = current.get().node.shutdownGrace
        gate.stopAccepting()
        logger.notice("Stopping", metadata: ["grace.seconds": "\(grace.seconds)"])
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await self.ingress.stop(grace: grace) }
            for loop in loops {
                group.addTask { try? await loop.dispatcher.shutDown(grace: grace).get() }
            }
        }
        await settleReports(within: grace)
        for loop in loops { try? await loop.home.loop.submit { loop.partition.stop() }.get() }
        try? await Self.blocking {
            self.spool.stopAccepting()
            self.spool.stop()
        }
        if let cluster {
            // Others have every outcome before they may take over.
            await cluster.runtime.settle(within: DriverLimits.settleWait)
            await cluster.stop(forGood: false)
        }
        try? await Self.blocking {
            self.copies?.stop()
            self.events.stop()
            self.resolver.stop()
            self.workers.stop()
        }
        try? await group.shutdownGracefully()
        directory.close()
        logger.notice("Stopped")
    }

    /// The last step of a drain: deliveries under way get their answer, within `shutdown_grace`, and no other begins.
    func stopDelivering() async {
        let grace = current.get().node.shutdownGrace
        await withTaskGroup(of: Void.self) { group in
            for loop in loops {
                group.addTask { try? await loop.dispatcher.shutDown(grace: grace).get() }
            }
        }
        await settleReports(within: grace)
    }

    /// Reports on their way into the spool get their answer; what is left is tried again after the next start.
    private func settleReports(within grace: TimeSpan) async {
        let end = time.now() + grace
        while time.now() < end {
            var left = 0
            for loop in loops { left += (try? await loop.home.loop.submit { loop.settler.outstanding }.get()) ?? 0 }
            if left == 0 { return }
            try? await Task.sleep(nanoseconds: 20_000_000)
        }
    }
}

/// What `/health` reports.
package enum NodePhase: String, Sendable {
    case starting
    case serving
    case stopping
}
