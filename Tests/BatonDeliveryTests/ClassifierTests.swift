// CONTRACT "Delivery behaviour" as tables: what replies mean, and where domains go.
import BatonCore
import BatonDNS
import BatonModel
import BatonSMTP
import Glibc
import Synchronization
import Testing

@testable import BatonDelivery

private func reply(_ code: UInt16, _ stage: ReplyStage, _ status: EnhancedStatus? = nil) -> SMTPReply {
    SMTPReply(code: code, status: status, text: [], stage: stage)
}

private func word(_ step: RecipientStep) -> String {
    switch step {
    case .resendFresh: "fresh"
    case .resendElsewhere: "elsewhere"
    case .result(let result):
        switch result {
        case .delivered: "delivered"
        case .temporary: "temporary"
        case .permanent(let reply): "permanent \(reply.effectiveStatus)"
        case .inDoubt: "inDoubt"
        case .returned: "returned"
        case .notPermitted: "notPermitted"
        case .beingRepaired: "beingRepaired"
        case .damaged: "damaged"
        }
    }
}

private func context(
    reused: Bool = false, resent: Bool = false, sessions: Int = 1, without: Int = 1, others: Bool = false
) -> AttemptContext {
    AttemptContext(
        connectionReused: reused, resent: resent, sessions: sessions, hostsWithout: without, otherHosts: others)
}

@Suite struct ReplyClassifierTests {
    @Test func replyJudgedWrongly() {
        let table: [(SMTPReply, String)] = [
            (reply(250, .finalDot), "delivered"),
            (reply(251, .finalDot), "delivered"),
            (reply(450, .rcpt), "temporary"),
            (reply(550, .rcpt, EnhancedStatus(5, 1, 1)), "permanent 5.1.1"),
            (reply(554, .finalDot), "permanent 5.0.0"),
            (reply(599, .mail), "permanent 5.0.0"),
            (reply(421, .finalDot), "temporary"),
            (reply(552, .rcpt), "temporary"),
            (reply(552, .rcpt, EnhancedStatus(5, 5, 3)), "temporary"),
            (reply(552, .rcpt, EnhancedStatus(5, 2, 2)), "permanent 5.2.2"),
            (reply(552, .finalDot), "permanent 5.0.0"),
            (reply(354, .rcpt), "temporary"),
            (reply(0, .rcpt), "temporary"),
        ]
        for (reply, expected) in table {
            #expect(word(ReplyClassifier.step(for: .reply(reply), context())) == expected, "\(reply)")
        }
    }

    @Test func lossJudgedWrongly() {
        let lost = RecipientEnd.lost(reply(0, .mail))
        let closing = RecipientEnd.lost(reply(421, .mail))
        #expect(word(ReplyClassifier.step(for: lost, context(reused: true))) == "fresh")
        #expect(word(ReplyClassifier.step(for: closing, context(reused: true))) == "fresh")
        #expect(word(ReplyClassifier.step(for: lost, context(reused: true, resent: true))) == "temporary")
        #expect(word(ReplyClassifier.step(for: lost, context())) == "temporary")
        #expect(word(ReplyClassifier.step(for: lost, context(others: true))) == "elsewhere")
        #expect(word(ReplyClassifier.step(for: lost, context(sessions: 2, others: true))) == "temporary")
        #expect(word(ReplyClassifier.step(for: closing, context(others: true))) == "temporary")
        let doubt = RecipientEnd.inDoubt(reply(0, .finalDot))
        #expect(word(ReplyClassifier.step(for: doubt, context(reused: true, others: true))) == "inDoubt")
        #expect(word(ReplyClassifier.step(for: .again, context())) == "returned")
        #expect(word(ReplyClassifier.step(for: .damaged, context(reused: true, others: true))) == "damaged")
    }

    @Test func incapablePeerJudgedWrongly() {
        let eight = RecipientEnd.incapable(.eightBitMIME)
        #expect(word(ReplyClassifier.step(for: eight, context(others: true))) == "elsewhere")
        #expect(word(ReplyClassifier.step(for: eight, context(without: 5, others: true))) == "permanent 5.6.3")
        #expect(word(ReplyClassifier.step(for: eight, context())) == "permanent 5.6.3")
        #expect(word(ReplyClassifier.step(for: .incapable(.smtpUTF8), context(others: true))) == "elsewhere")
        #expect(word(ReplyClassifier.step(for: .incapable(.smtpUTF8), context())) == "permanent 5.6.7")
        #expect(
            word(ReplyClassifier.step(for: .incapable(.size(limit: 5)), context(others: true))) == "permanent 5.3.4")
        #expect(
            word(ReplyClassifier.step(for: .incapable(.requireTLS), context(others: true))) == "permanent 5.7.30")
    }

    @Test func recipientsTroubleThrottlesSite() {
        #expect(ReplyClassifier.isThrottling(reply(421, .banner)))
        #expect(ReplyClassifier.isThrottling(reply(421, .ehlo)))
        #expect(ReplyClassifier.isThrottling(reply(421, .mail)))
        #expect(ReplyClassifier.isThrottling(reply(451, .mail, EnhancedStatus(4, 7, 1))))
        #expect(!ReplyClassifier.isThrottling(reply(451, .mail, EnhancedStatus(4, 3, 0))))
        #expect(!ReplyClassifier.isThrottling(reply(550, .mail, EnhancedStatus(5, 7, 1))))
        #expect(!ReplyClassifier.isThrottling(reply(450, .rcpt, EnhancedStatus(4, 7, 1))))
        #expect(!ReplyClassifier.isThrottling(reply(421, .rcpt)))
        #expect(!ReplyClassifier.isThrottling(reply(421, .finalDot)))
    }

    @Test func peersFaultTakenAsOurs() {
        for code in [EMFILE, ENFILE, ENETUNREACH, EADDRNOTAVAIL] { #expect(ReplyClassifier.isOwnFault(errno: code)) }
        for code in [ECONNREFUSED, ETIMEDOUT, ECONNRESET, EHOSTUNREACH] {
            #expect(!ReplyClassifier.isOwnFault(errno: code))
        }
    }
}

@Suite struct SitePlannerTests {
    private static let now = Instant(secondsSinceEpoch: 1_000)

    private static func configuration() -> DeliveryConfiguration {
        DeliveryConfiguration(hostname: Array("relay.test".utf8))
    }

    private static func plan(
        _ domain: String, _ verdict: MXPlan.Verdict, _ configuration: DeliveryConfiguration = configuration()
    ) -> PlannedDestination? {
        let planner = SitePlanner(configuration: configuration, planning: FakePlanning(verdict))
        let found = Mutex<PlannedDestination?>(nil)
        planner.plan(Domain(domain), at: now) { answer in found.withLock { $0 = answer } }
        return found.withLock { $0 }
    }

    private static func word(_ planned: PlannedDestination?) -> String {
        switch planned {
        case nil: "nothing"
        case .hold: "hold"
        case .fail(let reply): "fail \(reply.code) \(reply.effectiveStatus)"
        case .postpone(let reply): "postpone \(reply.effectiveStatus)"
        case .site(let plan):
            String(decoding: plan.name, as: UTF8.self) + " "
                + plan.hosts.flatMap(\.endpoints).map(\.text).joined(separator: ",")
        }
    }

    private static func hosts(_ names: [String], address: String = "203.0.113.9") -> MXPlan.Verdict {
        .hosts(
            names.enumerated().compactMap { index, name in
                IPAddress(address).map { MXHost(preference: UInt16(index), name: Array(name.utf8), addresses: [$0]) }
            })
    }

    @Test func verdictOfDNSMisjudged() {
        let table: [(MXPlan.Verdict, String)] = [
            (.nullMX, "fail 556 5.1.10"), (.noSuchDomain, "fail 550 5.1.2"), (.noAddress, "fail 550 5.4.4"),
            (.mailLoop, "fail 554 5.4.6"), (.temporary(reason: "SERVFAIL"), "postpone 4.4.3"), (.resolverDown, "hold"),
            (Self.hosts(["mx.test"]), "mx.test 203.0.113.9"),
            (Self.hosts(["mx.test"], address: "10.0.0.1"), "fail 550 5.4.4"),
        ]
        for (verdict, expected) in table { #expect(Self.word(Self.plan("example.test", verdict)) == expected) }
    }

    @Test func literalLeadsInside() {
        #expect(Self.word(Self.plan("[203.0.113.9]", .nullMX)) == "[203.0.113.9] 203.0.113.9")
        #expect(Self.word(Self.plan("[IPv6:2001:db8::1]", .nullMX)) == "[ipv6:2001:db8::1] 2001:db8::1")
        #expect(Self.word(Self.plan("[127.0.0.1]", .nullMX)) == "fail 550 5.4.4")
        #expect(Self.word(Self.plan("[IPv6:::ffff:10.0.0.1]", .nullMX)) == "fail 550 5.4.4")
        #expect(Self.word(Self.plan("[nonsense]", .nullMX)) == "fail 550 5.1.2")
    }

    @Test func routeOvertakenByMX() {
        var configuration = Self.configuration()
        for (pattern, hop) in [
            ("exact.test", "smtp://127.0.0.1:2600"), ("*.inside.test", "lmtp+unix:/run/mda.sock"),
            ("named.test", "smtp://relay.test:587"),
        ] {
            if let domain = DomainPattern(pattern), let nextHop = NextHop(hop) {
                configuration.routes.append(RouteRule(domain: domain, nextHop: nextHop))
            }
        }
        let mx = Self.hosts(["mx.test"])
        #expect(Self.word(Self.plan("exact.test", mx, configuration)) == "smtp://127.0.0.1:2600 127.0.0.1")
        #expect(Self.word(Self.plan("a.exact.test", mx, configuration)) == "mx.test 203.0.113.9")
        #expect(Self.word(Self.plan("b.inside.test", mx, configuration)) == "lmtp+unix:/run/mda.sock /run/mda.sock")
        #expect(Self.word(Self.plan("inside.test", mx, configuration)) == "mx.test 203.0.113.9")
        #expect(Self.word(Self.plan("named.test", mx, configuration)) == "smtp://relay.test:587 203.0.113.9")
        // The administrator's mistake bounces nobody's mail.
        #expect(Self.word(Self.plan("named.test", .noSuchDomain, configuration)) == "postpone 4.4.4")
    }

    @Test func domainsOfOneMXSetInTwoSites() {
        func key(_ domain: String, _ verdict: MXPlan.Verdict) -> [UInt8]? {
            guard case .site(let plan) = Self.plan(domain, verdict) else { return nil }
            return plan.key
        }
        #expect(key("a.test", Self.hosts(["m1", "m2"])) == key("b.test", Self.hosts(["m1", "m2"])))
        #expect(key("a.test", Self.hosts(["m1", "m2"])) != key("b.test", Self.hosts(["m1", "m3"])))
    }

    @Test func providerRuleMissed() {
        var configuration = Self.configuration()
        configuration.sites = [
            SiteRule(
                match: .mxSuffix([Array("mail.protection.outlook.com".utf8)]), name: Array("microsoft365".utf8),
                connections: 50, messagesPerSecond: 16, messagesPerConnection: 100)
        ]
        guard
            case .site(let plan)? = Self.plan(
                "example.test", Self.hosts(["example-test.mail.protection.outlook.com"]), configuration),
            case .site(let other)? = Self.plan(
                "example.test", Self.hosts(["xmail.protection.outlook.com"]), configuration)
        else {
            Issue.record("no site")
            return
        }
        #expect(plan.name == Array("microsoft365".utf8))
        #expect(plan.limits.connections == 50)
        #expect(plan.limits.messagesPerSecond == 16)
        #expect(plan.limits.messagesPerConnection == 100)
        #expect(other.limits.connections == 20)
    }

    @Test func nextHopMisread() {
        #expect(NextHop("smtp://127.0.0.1:2600") == .tcp(host: Array("127.0.0.1".utf8), port: 2600, isLMTP: false))
        #expect(NextHop("smtp://Relay.Test") == .tcp(host: Array("relay.test".utf8), port: 25, isLMTP: false))
        #expect(NextHop("lmtp://[::1]:24") == .tcp(host: Array("::1".utf8), port: 24, isLMTP: true))
        #expect(NextHop("lmtp+unix:/run/x") == .lmtpSocket(path: "/run/x"))
        for text in ["smtp://", "smtp://a:0", "smtp://a:70000", "smtp://a/b", "http://a", "lmtp+unix:x", "smtp://[x]"] {
            #expect(NextHop(text) == nil, "\(text)")
        }
        #expect(DomainPattern("a.*.b") == nil)
        #expect(DomainPattern("") == nil)
    }
}
