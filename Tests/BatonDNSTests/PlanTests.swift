// Plans of domains: which hosts, in which order, and every verdict.
import BatonCore
import BatonDNS
import BatonModel
import Testing

@Test func hostsByPreferenceAndAtRandomAmongEquals() {
    var zone = FakeZone()
    zone.mx("d.example", [(20, "c.example"), (10, "a.example"), (10, "b.example")])
    zone.host("a.example", ["203.0.113.1"])
    zone.host("b.example", ["203.0.113.2"])
    zone.host("c.example", ["203.0.113.3"])
    var planner = ZonePlanner(zone, seed: 7)
    var firsts: [String: Int] = [:]
    for _ in 0..<200 {
        let words = planner.text("d.example").split(separator: " ")
        firsts[String(words[2]), default: 0] += 1
        #expect(words.contains("20") && words[words.count - 2] == "c.example")
    }
    #expect(firsts["a.example", default: 0] > 60 && firsts["b.example", default: 0] > 60, "\(firsts), seed 7")
    #expect(firsts.count == 2)
    // All of it from the cache after the first time: one MX, two questions for each of three hosts.
    #expect(planner.asked.count == 7)
}

@Test func hostNamedTwiceCountsOnceAtItsBestPreference() {
    var zone = FakeZone()
    zone.mx("d.example", [(30, "a.example"), (10, "A.example.")])
    zone.host("a.example", ["203.0.113.1"])
    var planner = ZonePlanner(zone)
    #expect(planner.text("d.example") == "hosts 10 a.example 203.0.113.1")
}

@Test func implicitExchangerOnlyWhereThereIsNoRecord() {
    var zone = FakeZone()
    zone.host("plain.example", ["203.0.113.9"])
    zone.host("broken.example", ["203.0.113.9"])
    zone.fail("broken.example", [.mx], .refused(rcode: 2))
    zone.host("slow.example", ["203.0.113.9"])
    zone.fail("slow.example", [.mx], .timeout)
    zone.host("bogus.example", ["203.0.113.9"])
    zone.fail("bogus.example", [.mx], .bogus)
    zone.host("dangling.example", ["203.0.113.9"])
    zone.mx("dangling.example", [(10, "gone.example")])
    zone.missing = [name("gone.example")]
    var planner = ZonePlanner(zone)
    #expect(planner.text("plain.example") == "hosts 0 plain.example 203.0.113.9")
    #expect(planner.text("broken.example") == "temporary: SERVFAIL for the mail servers of broken.example")
    #expect(planner.text("slow.example") == "temporary: DNS time-out for the mail servers of slow.example")
    #expect(
        planner.text("bogus.example") == "temporary: DNSSEC validation failed for the mail servers of bogus.example")
    #expect(planner.text("dangling.example") == "noAddress")
}

@Test func nullExchangerAloneAndAmongOthers() {
    var zone = FakeZone()
    zone.mx("none.example", [(0, ".")])
    zone.host("none.example", ["203.0.113.1"])
    zone.mx("twice.example", [(0, "."), (10, ".")])
    zone.mx("mixed.example", [(0, "."), (10, "a.example")])
    zone.host("a.example", ["203.0.113.1"])
    var planner = ZonePlanner(zone)
    #expect(planner.text("none.example") == "nullMX")
    #expect(planner.text("twice.example") == "nullMX")
    #expect(planner.text("mixed.example") == "hosts 10 a.example 203.0.113.1")
}

@Test func domainThatDoesNotExistOrCannot() {
    var zone = FakeZone()
    zone.missing = [name("gone.example")]
    var planner = ZonePlanner(zone)
    #expect(planner.text("gone.example") == "noSuchDomain")
    #expect(planner.text("10.1.2.3") == "noSuchDomain")
    #expect(planner.text("a..example") == "noSuchDomain")
    #expect(planner.text("empty.example") == "noAddress")
}

@Test func targetsThatFailForNowAndForGood() {
    var zone = FakeZone()
    zone.mx("one.example", [(10, "bad.example"), (20, "good.example")])
    zone.mx("two.example", [(10, "bad.example"), (20, "gone.example")])
    zone.mx("half.example", [(10, "half6.example")])
    zone.fail("bad.example", [.a, .aaaa], .timeout)
    zone.host("good.example", ["203.0.113.1"])
    zone.host("half6.example", ["2001:db8::6"])
    zone.fail("half6.example", [.a], .refused(rcode: 2))
    var planner = ZonePlanner(zone)
    #expect(planner.text("one.example") == "hosts 20 good.example 203.0.113.1")
    #expect(planner.text("two.example").hasPrefix("temporary: DNS time-out"))
    #expect(planner.text("half.example") == "hosts 10 half6.example 2001:db8::6")
}

@Test func ourOwnFaultIsNotTheDomains() {
    var zone = FakeZone()
    zone.fail("a.example", [.mx], .resolverDown)
    zone.fail("b.example", [.mx], .overloaded)
    zone.mx("c.example", [(10, "x.example"), (20, "y.example")])
    zone.fail("x.example", [.a, .aaaa], .timeout)
    zone.fail("y.example", [.a, .aaaa], .resolverDown)
    var planner = ZonePlanner(zone)
    for domain in ["a.example", "b.example", "c.example"] { #expect(planner.text(domain) == "resolverDown") }
    // Not remembered: asked again at once.
    let before = planner.asked.count
    _ = planner.plan("a.example")
    #expect(planner.asked.count == before + 1)
}

@Test func addressesByFamily() {
    var zone = FakeZone()
    zone.mx("d.example", [(10, "a.example")])
    zone.host("a.example", ["203.0.113.1", "2001:db8::1"])
    let expected: [AddressFamily: String] = [
        .preferIPv4: "203.0.113.1 2001:db8::1", .preferIPv6: "2001:db8::1 203.0.113.1", .ipv4: "203.0.113.1",
        .ipv6: "2001:db8::1",
    ]
    for family in AddressFamily.allCases {
        var planner = ZonePlanner(zone, PlanSettings(addressFamily: family))
        #expect(planner.text("d.example") == "hosts 10 a.example " + expected[family, default: "?"])
        let types = Set(planner.asked.map(\.type)).subtracting([.mx])
        #expect(types == Set(family.types))
    }
    var zoneOfFour = FakeZone()
    zoneOfFour.host("d.example", ["203.0.113.1"])
    var sixOnly = ZonePlanner(zoneOfFour, PlanSettings(addressFamily: .ipv6))
    #expect(sixOnly.text("d.example") == "noAddress")
}

@Test func privateTargetsAreNoTargets() {
    let hidden = [
        "127.0.0.1", "10.1.2.3", "0.0.0.0", "169.254.1.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "::1", "fe80::1",
        "fc00::1", "::ffff:127.0.0.1", "224.0.0.1", "255.255.255.255", "64:ff9b::7f00:1", "64:ff9b:1::1",
        "2002:7f00:1::1", "::127.0.0.1",
    ]
    for text in hidden {
        var zone = FakeZone()
        zone.mx("d.example", [(10, "a.example")])
        zone.host("a.example", [text])
        zone.mx("e.example", [(10, "b.example")])
        zone.host("b.example", [text, "203.0.113.1"])
        var planner = ZonePlanner(zone)
        #expect(planner.text("d.example") == "noAddress", "\(text)")
        #expect(planner.text("e.example") == "hosts 10 b.example 203.0.113.1", "\(text)")
        #expect(planner.text("[\(text)]") == "noAddress", "\(text)")
        var allowing = ZonePlanner(zone, PlanSettings(allowPrivateAddresses: true))
        #expect(allowing.text("d.example").hasPrefix("hosts 10 a.example "), "\(text)")
        #expect(planner.text("a.example", .host).hasPrefix("hosts 0 a.example "), "\(text): routes may")
    }
}

@Test func privateTargetBesideOneThatFailsForNowIsNotFinal() {
    var zone = FakeZone()
    zone.mx("d.example", [(10, "a.example"), (20, "b.example")])
    zone.host("a.example", ["10.0.0.1"])
    zone.fail("b.example", [.a, .aaaa], .timeout)
    var planner = ZonePlanner(zone)
    #expect(planner.text("d.example").hasPrefix("temporary"))
}

@Test func localhostAndAddressesInPlaceOfNames() {
    var zone = FakeZone()
    zone.mx("d.example", [(10, "localhost")])
    zone.mx("e.example", [(10, "203.0.113.1")])
    zone.mx("f.example", [(10, "x.localhost"), (20, "a.example")])
    zone.host("localhost", ["127.0.0.1"])
    zone.host("a.example", ["203.0.113.1"])
    var planner = ZonePlanner(zone)
    #expect(planner.text("d.example") == "noAddress")
    #expect(planner.text("e.example") == "noAddress")
    #expect(planner.text("f.example") == "hosts 20 a.example 203.0.113.1")
    #expect(planner.text("localhost") == "noAddress")
    var allowing = ZonePlanner(zone, PlanSettings(allowPrivateAddresses: true))
    #expect(allowing.text("d.example") == "hosts 10 localhost 127.0.0.1")
    #expect(allowing.text("e.example") == "noAddress")
}

@Test func ourselvesAmongTheExchangers() {
    var zone = FakeZone()
    zone.mx("first.example", [(10, "us.example"), (20, "b.example")])
    zone.mx("backup.example", [(10, "a.example"), (20, "us.example"), (20, "c.example"), (30, "b.example")])
    zone.mx("address.example", [(10, "a.example"), (20, "alias.example"), (30, "b.example")])
    zone.mx("equal.example", [(10, "alias.example"), (10, "a.example")])
    zone.mx("worse.example", [(10, "later.example"), (20, "us.example")])
    zone.fail("later.example", [.a, .aaaa], .timeout)
    zone.mx("gone.example", [(10, "nothing.example"), (20, "us.example")])
    for (host, text) in [("a", "203.0.113.1"), ("b", "203.0.113.2"), ("c", "203.0.113.3"), ("alias", "203.0.113.99")] {
        zone.host("\(host).example", [text])
    }
    zone.host("us.example", ["203.0.113.99"])
    let settings = PlanSettings(ownNames: [name("us.example")], ownAddresses: [address("203.0.113.99")])
    var planner = ZonePlanner(zone, settings)
    #expect(planner.text("first.example") == "mailLoop")
    #expect(planner.text("backup.example") == "hosts 10 a.example 203.0.113.1")
    #expect(planner.text("address.example") == "hosts 10 a.example 203.0.113.1")
    #expect(planner.text("equal.example") == "mailLoop")
    #expect(planner.text("worse.example").hasPrefix("temporary"))
    #expect(planner.text("gone.example") == "noAddress")
    #expect(planner.text("alias.example") == "mailLoop", "implicit MX at our address")
    #expect(planner.text("us.example") == "mailLoop")
    #expect(planner.text("[203.0.113.99]") == "mailLoop")
    #expect(planner.text("us.example", .host) == "hosts 0 us.example 203.0.113.99", "a route may name us")
}

@Test func hundredExchangersAreLookedUpInSmallSteps() {
    var zone = FakeZone()
    let all = (0..<100).map { (UInt16($0), "mx\($0).example") }
    zone.mx("d.example", all)
    for (_, host) in all { zone.host(host, ["203.0.113.1"]) }
    var planner = ZonePlanner(zone)
    guard case .hosts(let hosts)? = planner.plan("d.example")?.verdict else {
        Issue.record("no hosts")
        return
    }
    #expect(hosts.map { Int($0.preference) } == Array(0..<DNSLimits.hostsAtOnce))
    #expect(planner.asked.count == 1 + 2 * DNSLimits.hostsAtOnce)
}

@Test func onlyTheLastOfHundredExchangersResolves() {
    var zone = FakeZone()
    zone.mx("d.example", (0..<100).map { (UInt16($0), "mx\($0).example") })
    zone.host("mx99.example", ["203.0.113.99"])
    var planner = ZonePlanner(zone)
    #expect(planner.text("d.example") == "hosts 99 mx99.example 203.0.113.99")
    #expect(planner.asked.count == 201)
}

@Test func literalsNeedNoResolver() {
    var planner = ZonePlanner(FakeZone())
    #expect(planner.text("[203.0.113.7]") == "hosts 0 [203.0.113.7] 203.0.113.7")
    #expect(planner.text("[IPv6:2001:db8::7]") == "hosts 0 [ipv6:2001:db8::7] 2001:db8::7")
    #expect(planner.text("127.0.0.1", .host) == "hosts 0 127.0.0.1 127.0.0.1")
    #expect(planner.text("[::1]", .host) == "hosts 0 [::1] ::1")
    #expect(planner.asked.isEmpty)
}

@Test func internationalDomainIsAskedForAsALabel() {
    var zone = FakeZone()
    zone.host("xn--bcher-kva.example", ["203.0.113.1"])
    var planner = ZonePlanner(zone)
    #expect(planner.text("bücher.example") == "hosts 0 xn--bcher-kva.example 203.0.113.1")
}

@Test func planIsSecureOnlyWhereEveryAnswerIs() {
    var zone = FakeZone()
    zone.mx("d.example", [(10, "a.example")], secure: true)
    zone.mx("e.example", [(10, "b.example")], secure: true)
    zone.host("a.example", ["203.0.113.1"], secure: true)
    zone.host("b.example", ["203.0.113.1"])
    var planner = ZonePlanner(zone, PlanSettings(addressFamily: .ipv4))
    #expect(planner.plan("d.example")?.secure == true)
    #expect(planner.plan("e.example")?.secure == false)
}

@Test func planLivesAsLongAsItsShortestAnswer() {
    var zone = FakeZone()
    zone.mx("d.example", [(10, "a.example")], ttl: 300)
    zone.host("a.example", ["203.0.113.1"], ttl: 60)
    zone.mx("zero.example", [(10, "z.example")], ttl: 0)
    zone.host("z.example", ["203.0.113.1"], ttl: 0)
    var planner = ZonePlanner(zone, PlanSettings(addressFamily: .ipv4))
    #expect(planner.plan("d.example")?.expires == planner.now + .seconds(60))
    #expect(planner.plan("zero.example")?.expires == planner.now + DNSLimits.planMin)
    let before = planner.asked.count
    _ = planner.plan("zero.example")
    #expect(planner.asked.count == before + 2, "TTL 0 is never cached")
}

@Test func plansAndWaitersOverTheirBoundsAreOurOwnFault() {
    var state = PlannerState(settings: PlanSettings(), seed: 1)
    var actions = ActionBuffer<PlannerState.Action>()
    let now = Instant.epoch
    for index in 0..<DNSLimits.plansAtOnce {
        state.receive(
            .planWanted(Domain("d\(index).example"), .exchangers, token: UInt64(index)), at: now, into: &actions)
    }
    #expect(state.plansUnderWay == DNSLimits.plansAtOnce)
    _ = actions.drain()
    state.receive(.planWanted(Domain("more.example"), .exchangers, token: 1), at: now, into: &actions)
    guard case .finished(1, let plan)? = actions.drain().first, case .resolverDown = plan.verdict else {
        Issue.record("taken over the bound of plans")
        return
    }
    for index in DNSLimits.plansAtOnce..<DNSLimits.planWaiters {
        state.receive(.planWanted(Domain("d0.example"), .exchangers, token: UInt64(index)), at: now, into: &actions)
    }
    #expect(actions.drain().isEmpty)
    state.receive(.planWanted(Domain("d0.example"), .exchangers, token: 2), at: now, into: &actions)
    guard case .finished(2, let other)? = actions.drain().first, case .resolverDown = other.verdict else {
        Issue.record("taken over the bound of waiters")
        return
    }
    #expect(state.refused == 2)
}

@Test func listenerOnEveryAddressIsFoundBehindAnyOfThem() {
    let all = LocalAddresses.reachable(at: [address("0.0.0.0")])
    #expect(all.contains(address("127.0.0.1")))
    #expect(all.allSatisfy { $0.isIPv4 && $0 != address("0.0.0.0") })
    #expect(LocalAddresses.reachable(at: [address("::")]).isSuperset(of: all))
    #expect(LocalAddresses.reachable(at: [address("203.0.113.5")]) == [address("203.0.113.5")])
    #expect(LocalAddresses.reachable(at: []).isEmpty)
}
