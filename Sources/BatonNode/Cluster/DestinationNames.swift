// Whose rate placement measures: the next hop that a domain's route names, or the domain itself.
import BatonCore
import BatonDelivery
import BatonModel
import Synchronization

/// All domains of one smart host are one destination: their mail meets in its connections, whatever node it is on. Any thread.
final class DestinationNames: Sendable {
    private struct Route: Sendable {
        let pattern: BatonDelivery.DomainPattern
        let hash: UInt64
    }

    private let routes: Mutex<[Route]>

    init(_ rules: [BatonDelivery.RouteRule]) {
        routes = Mutex(Self.routes(rules))
    }

    /// After a reload.
    func update(_ rules: [BatonDelivery.RouteRule]) { routes.withLock { $0 = Self.routes(rules) } }

    /// The first route that matches counts, as for delivery (`SitePlanner`).
    func hash(of domain: Domain) -> UInt64 {
        routes.withLock { $0.first { $0.pattern.matches(domain) }?.hash } ?? domain.stableHash
    }

    private static func routes(_ rules: [BatonDelivery.RouteRule]) -> [Route] {
        rules.map { Route(pattern: $0.domain, hash: StableHash.of(Array($0.nextHop.text.utf8))) }
    }
}
