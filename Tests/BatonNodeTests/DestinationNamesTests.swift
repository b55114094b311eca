// Domains of one next hop are one destination; the first route that matches counts, and a reload is heard.
import BatonCore
import BatonDelivery
import BatonModel
import Testing

@testable import BatonNode

private func rule(_ pattern: String, _ hop: String) throws -> BatonDelivery.RouteRule {
    let (pattern, hop) = (BatonDelivery.DomainPattern(pattern), BatonDelivery.NextHop(hop))
    return BatonDelivery.RouteRule(domain: try #require(pattern), nextHop: try #require(hop))
}

@Test func domainsOfOneSmartHostAreDestinationsOfTheirOwn() throws {
    let names = DestinationNames([
        try rule("own.example", "lmtp://127.0.0.1:24"), try rule("*.far.example", "smtp://hub.example:25"),
    ])
    let (one, other) = (Domain("a.far.example"), Domain("b.far.example"))
    #expect(names.hash(of: one) == names.hash(of: other))
    #expect(names.hash(of: one) != one.stableHash)
    #expect(names.hash(of: Domain("own.example")) != names.hash(of: one))
    let direct = Domain("elsewhere.example")
    #expect(names.hash(of: direct) == direct.stableHash)
    names.update([try rule("b.far.example", "smtp://second.example:25"), try rule("*", "smtp://hub.example:25")])
    #expect(names.hash(of: one) == names.hash(of: direct), "read again")
    #expect(names.hash(of: other) != names.hash(of: one), "the first that matches")
}
