// One data loop and what lives on it: queue partition, DNS cache, settler, dispatcher.
import BatonCore
import BatonDNS
import BatonDelivery
import BatonModel
import BatonQueue
import BatonRuntime
import Logging
import NIOCore
import Synchronization

/// Strong references to a loop's actors; the partition and the dispatcher know each other weakly or by these.
struct NodeLoop: Sendable {
    let home: LoopHome
    let partition: QueuePartition
    let dns: DNSCache
    let settler: Settler
    let dispatcher: Dispatcher
}

/// What the loops of a node share.
struct NodePorts: Sendable {
    let submitter: any MessageSubmitting
    let outcomes: any OutcomeRecording
    let bodies: any BodyReading
    let events: any EventRecording
    let permits: any PermitLeasing
    let resolver: UnboundThread
    let time: any TimeSource
    let logger: Logger
    /// In force now; a reload replaces it.
    let current: CurrentConfiguration
    /// Nil in a single node.
    var dots: (any DotPermitting)?
}

/// The configuration in force, for readers on any thread.
final class CurrentConfiguration: Sendable {
    private let value: Mutex<NodeConfiguration>

    init(_ configuration: NodeConfiguration) {
        value = Mutex(configuration)
    }

    func get() -> NodeConfiguration { value.withLock { $0 } }
    func set(_ new: NodeConfiguration) { value.withLock { $0 = new } }
}

/// Gives the loop's partition each site's name and its own retry schedule, if `sites:` has one.
struct SiteNames: SiteNaming {
    let partition: QueuePartition
    let configuration: CurrentConfiguration

    func siteInUse(_ site: SiteID, name: [UInt8]) {
        partition.nameSite(site, name: name, retry: configuration.get().retrySchedule(ofSite: name))
    }

    func siteForgotten(_ site: SiteID) { partition.forgetSite(site) }
}

extension NodeConfiguration {
    /// Of one partition, since it exists before the ports that need the spool.
    func makePartition(index: Int, of count: Int, on loop: any EventLoop, time: any TimeSource, logger: Logger)
        -> QueuePartition
    {
        QueuePartition(
            index: index, count: count, home: LoopHome(loop), time: time,
            configuration: queueSettings(partitions: count, seed: SystemRandom.uint64()), logger: logger)
    }

    /// The rest of a loop around its partition.
    func makeLoop(_ partition: QueuePartition, on loop: any EventLoop, ports: NodePorts) async throws -> NodeLoop {
        let home = LoopHome(loop)
        let dns = DNSCache(
            home: home, resolver: ports.resolver, settings: planSettings, time: ports.time, seed: SystemRandom.uint64())
        let settler = Settler(
            loop: loop, name: "\(partition.index)", configuration: reportSettings, time: ports.time,
            submitter: ports.submitter, reader: ports.bodies, events: ports.events, outcomes: ports.outcomes,
            source: partition, logger: ports.logger)
        let dispatcher = Dispatcher(
            loop: loop, configuration: deliverySettings, source: partition, settler: settler, reader: ports.bodies,
            planning: dns, permits: ports.permits, time: ports.time, logger: ports.logger, seed: SystemRandom.uint64(),
            naming: SiteNames(partition: partition, configuration: ports.current), dots: ports.dots)
        try await loop.submit { partition.bind(signalling: dispatcher) }.get()
        dispatcher.start()
        return NodeLoop(home: home, partition: partition, dns: dns, settler: settler, dispatcher: dispatcher)
    }
}
