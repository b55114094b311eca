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
        let metrics = PrometheusText()
        MetricsSystem.bootstrap(metrics)
        let logger = Logger(label: "baton")
        warnAboutFileLimit(configuration, logger)
        // Before anything is delivered: a stop during the start waits for the answers of final dots like every other.
        let stops = await UnixSignalsSequence(trapping: .sigterm, .sigint)
        let reloads = await UnixSignalsSequence(trapping: .sighup)
        let node: RelayNode
        do {
            node = try await RelayNode.start(configuration, logger: logger)
        } catch {
            printLine("baton: \(error)")
            return (error as? NodeError)?.exitCode ?? 1
        }
        metrics.addCollector { node.samples() }
        let controlGroup = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let (adminReady, tellReady) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let admin: AdminServer
        do {
            let token = try AdminToken.openOrCreate(dataDirectory: configuration.node.dataDirectory)
            admin = AdminServer(
                address: configuration.admin.address, node: NodeInspector(node: node), metrics: metrics, token: token,
                group: controlGroup, logger: logger, onListening: { _ in tellReady.yield() })
        } catch {
            printLine("baton: \(error)")
            await node.stop()
            return 1
        }
        // Stopped in the reverse order: the admin HTTP answers until the node is down.
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: [
                    .init(service: AdminService(server: admin, address: configuration.admin.address)),
                    .init(
                        service: NodeService(node: node, adminReady: adminReady),
                        failureTerminationBehavior: .gracefullyShutdownGroup),
                    .init(service: ReloadService(node: node, signals: reloads)),
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

/// The admin HTTP; an address that cannot be had is told in one line.
struct AdminService: Service {
    let server: AdminServer
    let address: SocketEndpoint

    func run() async throws {
        do {
            try await server.run()
        } catch let error as IOError {
            throw NodeError("\(ListenFailure(address: "\(address)", error)) (admin)")
        }
    }
}

/// Takes mail once the admin HTTP answers, prints the banner, holds the node until the graceful stop, then ends it in order.
struct NodeService: Service {
    let node: RelayNode
    let adminReady: AsyncStream<Void>

    func run() async throws {
        await cancelWhenGracefulShutdown { for await _ in adminReady { break } }
        do {
            if !Task.isCancelled, !Task.isShuttingDownGracefully {
                try await node.listen()
                NodeRunner.printLine(node.banner)
                try? await gracefulShutdown()
            }
        } catch {
            await node.stop()
            throw error
        }
        await node.stop()
    }
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
    /// The first line on standard error once the node serves.
    package var banner: String {
        let version = BatonVersion.current
        var line = "baton \(version) serving: node=\(configuration.node.id) copies=1"
        line += " smtp=\(listenerAddresses.joined(separator: ",")) admin=\(configuration.admin.address)"
        line += " data=\(configuration.node.dataDirectory)"
        if !configuration.spool.sync { line += " sync=false (mail answered 250 can be lost by a power cut)" }
        switch resolver.status.dnssec {
        case .stripped(let reason): line += " dnssec=off (\(reason))"
        case .off: line += " dnssec=off"
        case .unknown: line += " dnssec=unknown"
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
        let old = current.get()
        for change in old.changesThatNeedRestart(to: new) {
            logger.warning("SIGHUP: not changed while running", metadata: ["config": "\(change)"])
        }
        let next = old.reloaded(with: new)
        current.set(next)
        ingress.update(limits: next.ingressSettings.limits)
        permits.update(connections: next.delivery.connections)
        for loop in loops {
            loop.dispatcher.update(next.deliverySettings)
            loop.dns.reconfigure(next.planSettings)
            await loop.partition.update(
                next.queueSettings(partitions: loops.count, seed: 0))
        }
        logger.notice("SIGHUP: configuration read again", metadata: ["file": "\(path)"])
    }
}
