// Nobody relays through Baton who may not: the open-relay table, and the counting of clients.
import BatonCore
import BatonModel
import BatonSMTP
import NIOCore
import Testing

@testable import BatonIngress

/// A dialogue of a client at `address` against a listener with `relayFrom`; the code of the reply to RCPT.
private func codeOfRcpt(_ path: String, sender: String, from address: String, relayFrom: [String]?) -> String {
    let blocks = relayFrom.map { $0.compactMap { AddressBlock($0) } }
    let policy = RelayPolicy(relayFrom: blocks)
    let configuration = IngressConfiguration(hostname: "relay.test")
    var now = Instant(secondsSinceEpoch: 1)
    var output = ServerOutput()
    var session = ServerSession(
        settings: configuration.settings(for: ListenerConfiguration(relayFrom: blocks)),
        client: ServerClient(
            address: Array(address.utf8), mayRelay: policy.mayRelay(IPAddress(address)), sessionID: 1), seed: 1, at: now
    )
    now = now + .seconds(1)
    session.deadlineReached(at: now, into: &output)
    for line in ["EHLO attacker.test", "MAIL FROM:<\(sender)>", "RCPT TO:\(path)"] {
        output.replies.clear()
        var input = ByteBuffer(string: line + "\r\n")
        session.receive(&input, at: now, into: &output)
    }
    return String(String(buffer: output.replies).prefix(3))
}

/// The classic tricks of relay testers; each from a stranger (203.0.113.9) and each sender form.
private let tricks = [
    "<victim@other.test>", "<victim%other.test@relay.test>", "<other.test!victim@relay.test>", "<victim@relay.test>",
    "<@relay.test:victim@other.test>", "<@relay.test,@a.test:victim@other.test>", "<\"victim@other.test\"@relay.test>",
    "<\"victim%other.test\"@relay.test>", "<victim@[203.0.113.77]>", "<victim@[127.0.0.1]>", "<victim@[IPv6:::1]>",
    "<victim%other.test@[127.0.0.1]>", "<other.test!victim@[127.0.0.1]>", "<\"victim\"@other.test>",
    "<victim@localhost>",
    "<postmaster@other.test>", "<postmaster@relay.test>", "<victim@other.test.>", "<victim%a%b@relay.test>",
    "<a!b!victim%other.test@relay.test>", "<victim@relay.test@other.test>", "<victim>", "victim@other.test",
    "<@other.test>",
    "<victim@other.test%relay.test>",
]

@Test(arguments: ["", "spammer@bad.test", "postmaster@relay.test", "a@[127.0.0.1]", "spoofed@localhost"])
func openRelayTable(sender: String) {
    for trick in tricks {
        for relayFrom in [nil, [], ["127.0.0.0/8"], ["203.0.113.8/32"], ["::/0"]] as [[String]?] {
            let code = codeOfRcpt(trick, sender: sender, from: "203.0.113.9", relayFrom: relayFrom)
            #expect(code.hasPrefix("5"), "\(trick) from <\(sender)> under \(relayFrom ?? ["default"]): \(code)")
        }
    }
    #expect(tricks.count >= 20)
}

@Test func permittedNetworksAndLoopback() {
    let path = "<user@other.test>"
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "127.0.0.1", relayFrom: nil) == "250")
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "::1", relayFrom: nil) == "250")
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "::ffff:127.0.0.1", relayFrom: nil) == "250")
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "::2", relayFrom: nil) == "554")
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "10.1.2.3", relayFrom: nil) == "554")
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "10.1.2.3", relayFrom: ["10.0.0.0/8"]) == "250")
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "127.0.0.1", relayFrom: ["10.0.0.0/8"]) == "554")
    #expect(codeOfRcpt(path, sender: "a@b.test", from: "127.0.0.1", relayFrom: []) == "554")
    #expect(codeOfRcpt("<postmaster>", sender: "a@b.test", from: "203.0.113.9", relayFrom: []) == "250")
    #expect(!RelayPolicy(relayFrom: nil).mayRelay(nil))
}

@Test func connectionLimitsOfNodeAndClient() {
    var limits = ClientLimits()
    #expect(limits.admit([1], connectionsMax: 3, perClientMax: 2) == .admitted)
    #expect(limits.admit([1], connectionsMax: 3, perClientMax: 2) == .admitted)
    #expect(limits.admit([1], connectionsMax: 3, perClientMax: 2) == .tooManyFromClient)
    #expect(limits.admit([2], connectionsMax: 3, perClientMax: 2) == .admitted)
    #expect(limits.admit([3], connectionsMax: 3, perClientMax: 2) == .tooManyConnections)
    limits.release([1])
    #expect(limits.admit([1], connectionsMax: 3, perClientMax: 2) == .admitted)
    for network in [[1], [1], [2]] as [[UInt8]] { limits.release(network) }
    limits.release([9])
    #expect(limits.connections == 0)
}

@Test func fiveThousandClientsComeAndGo() {
    let admission = Admission(limits: IngressLimits())
    for index in 0..<5_000 {
        #expect(admission.admit([10, 0, UInt8(index >> 8), UInt8(truncatingIfNeeded: index)]) == .admitted)
    }
    #expect(admission.connections == 5_000)
    for index in 0..<5_000 { admission.release([10, 0, UInt8(index >> 8), UInt8(truncatingIfNeeded: index)]) }
    #expect(admission.connections == 0)
}

@Test func memoryBudgetOfAdmission() {
    var limits = IngressLimits()
    limits.memory = 800
    let admission = Admission(limits: limits)
    #expect(admission.book(699) && admission.hasMemoryForMessage)
    #expect(admission.book(1) && !admission.hasMemoryForMessage)
    #expect(!admission.book(101))
    #expect(admission.book(-701) && admission.hasMemoryForMessage && admission.memoryInUse == 100)
}
