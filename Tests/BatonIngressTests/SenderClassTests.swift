// Sender classes: whose turn a message waits for.
import BatonCore
import BatonModel
import Testing

@testable import BatonIngress

private func classOf(_ client: String?, _ sender: String? = nil) -> UInt64 {
    SenderClass(client: client.flatMap { IPAddress($0) }).value(for: sender.flatMap { MailAddress($0) })
}

@Test func everyClientNetworkInOneClass() {
    // A /24 of IPv4, a /64 of IPv6, whoever the sender is.
    #expect(classOf("192.0.2.1", "a@b.test") == classOf("192.0.2.254", "x@y.test"))
    #expect(classOf("192.0.2.1") != classOf("192.0.3.1"))
    #expect(classOf("::ffff:192.0.2.9") == classOf("192.0.2.1"))
    #expect(classOf("2001:db8:1:2::1") == classOf("2001:db8:1:2:ffff::1"))
    #expect(classOf("2001:db8:1:2::1") != classOf("2001:db8:1:3::1"))
    let networks = (0..<256).flatMap { third in
        [classOf("10.1.\(third).7"), classOf("2001:db8:0:\(String(third, radix: 16))::7")]
    }
    #expect(Set(networks).count == 512)
}

@Test func programsOfOneHostInOneClass() {
    #expect(classOf("127.0.0.1", "a@shop.test") == classOf("::1", "other@SHOP.test"))
    #expect(classOf("127.0.0.1", "a@shop.test") != classOf("127.0.0.1", "a@news.test"))
    #expect(classOf("127.0.0.1", "a@shop.test") == classOf("127.8.8.8", "a@shop.test"))
    #expect(classOf(nil, "a@shop.test") == classOf("127.0.0.1", "a@shop.test"))
    #expect(classOf("127.0.0.1") != classOf("127.0.0.1", "a@shop.test"))
    #expect(classOf("127.0.0.1") == classOf("::1"))
    // Never per address: a sender has as many as it likes.
    #expect(Set((0..<100).map { classOf("127.0.0.1", "bounce-\($0)@shop.test") }).count == 1)
    #expect(classOf("192.0.2.1", "a@shop.test") != classOf("127.0.0.1", "a@shop.test"))
}

@Test func twoNetworksAndTwoLocalDomainsStampedAlike() throws {
    let ingress = EmbeddedIngress()
    let mail = "Subject: x\r\n\r\nHello\r\n.\r\n"
    for (session, address, sender) in [
        (1, "127.0.0.1", "a@b.test"), (2, "127.0.0.1", "c@b.test"), (3, "127.0.0.1", "a@other.test"),
    ] as [(UInt64, String, String)] {
        let client = try ingress.connect(session, from: address)
        try client.openData(from: sender)
        #expect(try client.send(mail).hasPrefix("250"))
    }
    let far = try ingress.connect(4, from: "198.51.100.9", relayFrom: ["198.51.100.0/24", "203.0.113.0/24"])
    let near = try ingress.connect(5, from: "198.51.100.200", relayFrom: ["198.51.100.0/24"])
    let other = try ingress.connect(6, from: "203.0.113.9", relayFrom: ["203.0.113.0/24"])
    for client in [far, near, other] {
        try client.openData(from: "a@b.test")
        #expect(try client.send(mail).hasPrefix("250"))
    }
    let classes = ingress.spool.submissions.map(\.envelope.senderClass)
    #expect(classes.count == 6 && classes[0] == classes[1] && classes[3] == classes[4])
    #expect(Set(classes).count == 4)
}
