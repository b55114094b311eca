// `baton serve`: starts a node under ServiceLifecycle, prints the banner, reloads on SIGHUP, stops on SIGTERM.
import BatonCore
import BatonDNS
import BatonDelivery
import BatonIngress
import BatonModel
import BatonQueue
import BatonRuntime
import CBatonSystem
import Foundation
import Logging
import Metrics
import NIOCore
import NIOPosix
import ServiceLifecycle
import Synchronization
import UnixSignals

/// Runs a node until it is told to stop. Returns the process's exit code.
package enum NodeRunner {
    package static func run(configuration: NodeConfiguration) async -> Int32 {
        // Rather than one copy where two were asked for.
        let metrics = PrometheusText()
        MetricsSystem.bootstrap(metrics)
        let logger = Logger(label: "baton")
        warnAboutFileLimit(configuration, logger)
        // Before anything is delivered: a stop during the start waits for the answers of final dots like every other.
        let stops = await UnixSignalsSequence(trapping: .sigterm, .sigint)
        let reloads = await UnixSignalsSequence(trapping: .sighup)
        baton_bound_allocator()
        let node: RelayNode
        do {
            node = try await RelayNode.start(configuration, logger: logger)
        } catch {
            printLine("baton: \(error)")
            return (error as? NodeError)?.exitCode ?? 1
        }
        metrics.addCollector { node.samples() }
        let controlGroup = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let (adminReady, tellReady) = AsyncStream.makeStream(of: Int.self, bufferingPolicy: .bufferingNewest(1))
        let admin: AdminServer
        do {
            let token = try AdminToken.openOrCreate(dataDirectory: configuration.node.dataDirectory)
            admin = AdminServer(
                address: configuration.admin.address, node: inspector(of: node), metrics: metrics, token: token,
                group: controlGroup, logger: logger, onListening: { port in tellReady.yield(port) })
        } catch {
            printLine("baton: \(error)")
            await node.stop()
            return 1
        }
        // Stopped in the reverse order: the admin HTTP answers until the node is down.
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: [
                    .init(service: admin),
                    .init(
                        service: NodeService(node: node, adminReady: adminReady),
                        failureTerminationBehavior: .gracefullyShutdownGroup),
                    .init(service: ReloadService(node: node, signals: reloads)),
                    .init(service: MemoryService(limit: configuration.limits.memory)),
                    .init(
                        service: StopService(signals: stops), successTerminationBehavior: .gracefullyShutdownGroup),
                ], logger: logger))
        do {
            try await group.run()
            return 0
        } catch {
            printLine("baton: \(error)")
            return (error as? NodeError)?.exitCode ?? 1
        }
    }

    /// Answers for this node, or for the cluster that it is in.
    private static func inspector(of node: RelayNode) -> any NodeInspecting {
        guard let cluster = node.cluster else { return NodeInspector(node: node) }
        let administration = ClusterAdministration(relay: node, cluster: cluster)
        let local = NodeInspector(node: node, cluster: administration)
        administration.bind(PeerQueries(node: local))
        return ClusterInspector(
            local: local, runtime: administration, holds: administration, time: { node.time.now() },
            freshID: {
                [SystemRandom.uint64(), SystemRandom.uint64()].map(ClusterStatusReport.Member.digits).joined()
            })
    }

    /// On standard error whatever the log's format is: the contract promises it as a line.
    static func printLine(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }

    private static func warnAboutFileLimit(_ configuration: NodeConfiguration, _ logger: Logger) {
        let limit = baton_raise_file_limit()
        // Connections both ways, and some for segments, logs, the resolver and the system.
        let wanted = configuration.limits.connections + configuration.delivery.connections + 512
        if limit < UInt64(wanted) {
            logger.warning(
                "ulimit -n is less than the connections that may be opened",
                metadata: ["ulimit": "\(limit)", "wanted": "\(wanted)"])
        }
    }
}

/// Takes mail once the admin HTTP answers, prints the banner, holds the node until the graceful stop, then ends it in order.
struct NodeService: Service {
    let node: RelayNode
    /// The port of the admin HTTP, once it listens.
    let adminReady: AsyncStream<Int>

    func run() async throws {
        let port = await cancelWhenGracefulShutdown { await adminReady.first { _ in true } }
        do {
            if !Task.isCancelled, !Task.isShuttingDownGracefully {
                try await node.listen()
                await cancelWhenGracefulShutdown { await node.waitForDNSSEC() }
                if !Task.isShuttingDownGracefully { NodeRunner.printLine(node.banner(adminPort: port ?? 0)) }
                try? await gracefulShutdown()
            }
        } catch {
            await node.stop()
            throw error
        }
        await node.stop()
    }
}

/// Gives memory that was freed in a peak back to the system, so that the process's size follows what it holds.
struct MemoryService: Service {
    /// `limits.memory`.
    let limit: Int

    /// How often it looks.
    static let interval: UInt64 = 1_000_000_000

    func run() async throws {
        try? await cancelWhenGracefulShutdown {
            while true {
                try await Task.sleep(nanoseconds: Self.interval)
                if Self.isDue(resident: Int(clamping: baton_resident_bytes()), free: baton_allocator_free(), limit) {
                    baton_release_free_memory()
                }
            }
        }
    }

    /// Only where it matters: more than three quarters of the limit are resident, and an eighth of it or more is free inside
    /// the allocator. A release walks the arenas under their locks.
    static func isDue(resident: Int, free: Int, _ limit: Int) -> Bool { resident > limit / 4 * 3 && free > limit / 8 }
}

/// Reads the configuration again on SIGHUP; a bad file changes nothing.
struct ReloadService: Service {
    let node: RelayNode
    let signals: UnixSignalsSequence

    func run() async throws {
        for await _ in signals.cancelOnGracefulShutdown() { await node.reload() }
    }
}

/// Its end, on SIGTERM or SIGINT, is the group's graceful stop.
struct StopService: Service {
    let signals: UnixSignalsSequence

    func run() async throws {
        for await _ in signals.cancelOnGracefulShutdown() { return }
    }
}

extension RelayNode {
    /// Longest wait of the banner for the resolver's word on DNSSEC.
    static let dnssecWait = TimeSpan.seconds(2)

    /// Until it is known whether the resolver passes DNSSEC on, or the wait is over. The node serves meanwhile.
    func waitForDNSSEC() async {
        let end = time.now() + Self.dnssecWait
        while resolver.status.dnssec == .unknown, time.now() < end, !Task.isCancelled {
            try? await Task.sleep(nanoseconds: 10_000_000)
        }
    }

    /// The first line on standard error once the node serves. `adminPort` is the port in use, where 0 was asked for.
    package func banner(adminPort: Int) -> String {
        let version = BatonVersion.current
        var admin = configuration.admin.address
        if adminPort > 0 { admin.port = adminPort }
        var line = "baton \(version) serving: node=\(configuration.node.id) copies=\(configuration.copies)"
        line += " smtp=\(listenerAddresses.joined(separator: ",")) admin=\(admin)"
        line += " data=\(configuration.node.dataDirectory)"
        if !configuration.spool.sync { line += " sync=false (mail answered 250 can be lost by a power cut)" }
        switch resolver.status.dnssec {
        case .stripped(let reason): line += " dnssec=off (\(reason))"
        case .off: line += " dnssec=off"
        case .unknown: line += " dnssec=off (the resolver has not answered yet)"
        case .validating: line += " dnssec=on"
        }
        return line
    }

    /// Limits, delivery, sites, routes and queue settings; the rest is refused by name (CONTRACT "Command", SIGHUP).
    func reload() async {
        guard let path = configuration.file else {
            logger.notice("SIGHUP: no configuration file to read again")
            return
        }
        let new: NodeConfiguration
        do {
            new = try ConfigurationLoader.load(path: path)
        } catch {
            logger.error("SIGHUP: nothing changed", metadata: ["reason": "\(error)"])
            return
        }
        for warning in new.warnings { logger.warning("SIGHUP: \(warning)") }
        let old = current.get()
        for change in old.changesThatNeedRestart(to: new) {
            logger.warning("SIGHUP: not changed while running", metadata: ["config": "\(change)"])
        }
        let next = old.reloaded(with: new)
        current.set(next)
        let settings = next.ingressSettings
        ingress.update(limits: settings.limits, relayFrom: settings.listeners.map(\.relayFrom))
        permits.update(connections: next.delivery.connections)
        for loop in loops {
            loop.dispatcher.update(next.deliverySettings)
            loop.dns.reconfigure(next.planSettings)
            await loop.partition.update(
                next.queueSettings(partitions: loops.count, seed: 0))
        }
        do {
            try cluster?.reload()
        } catch {
            logger.error("SIGHUP: the cluster's certificates stay as they were", metadata: ["reason": "\(error)"])
        }
        logger.notice("SIGHUP: configuration read again", metadata: ["file": "\(path)"])
    }
}
