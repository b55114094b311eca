// Record data and names from hostile servers.
import BatonCore
import BatonModel
import Testing

@testable import BatonDNS

private func wire(_ labels: [String]) -> [UInt8] { labels.flatMap { [UInt8($0.utf8.count)] + Array($0.utf8) } + [0] }

private func exchange(_ name: [UInt8]) -> MXRecord.Exchange? { RecordData.mx([0, 10] + name)?.exchange }

@Test func exchangerIsLoweredAndItsPreferenceReadInNetworkOrder() {
    let record = RecordData.mx([1, 2] + wire(["MX", "Example", "NET"]))
    #expect(record == MXRecord(preference: 258, exchange: .host(name("mx.example.net"))))
}

@Test func rootAsExchangerIsNull() {
    #expect(exchange([0]) == .null)
}

@Test func exchangerThatNoHostCanHave() {
    #expect(exchange(wire(["192", "0", "2", "1"])) == .unusable)
    #expect(exchange(wire(["mx evil", "example"])) == .unusable)
    #expect(exchange(wire(["a.b", "example"])) == .unusable)
    #expect(exchange([3, 0x61, 0, 0x62, 0]) == .unusable)
    #expect(exchange(wire(["b\u{fc}cher", "example"])) == .unusable)
}

@Test func exchangerDataThatIsNoRecord() {
    #expect(RecordData.mx([]) == nil)
    #expect(RecordData.mx([0, 10]) == nil)
    // A compression pointer, a label beyond the end, no root label, octets after the root, a name over 255 octets.
    #expect(exchange([0xc0, 0x0c]) == nil)
    #expect(exchange([5, 0x61, 0]) == nil)
    #expect(exchange([1, 0x61]) == nil)
    #expect(exchange([1, 0x61, 0, 0]) == nil)
    #expect(exchange(wire([String](repeating: "abcdefg", count: 32))) == nil)
}

@Test func exchangerDataCutOrFlippedAnywhereDoesNotTrap() {
    let whole = [UInt8(0), 10] + wire(["mx1", "mail", "example", "org"])
    for cut in 0..<whole.count { #expect(RecordData.mx(Array(whole[..<cut])) == nil) }
    for index in whole.indices {
        for bit in 0..<8 {
            var flipped = whole
            flipped[index] ^= 1 << UInt8(bit)
            _ = RecordData.mx(flipped)
        }
    }
}

@Test func addressRecordOfTheWrongLengthIsSkipped() {
    #expect(RecordData.content([[1, 2, 3]], of: .a) == .failed(.malformed))
    #expect(RecordData.content([[1, 2, 3], [192, 0, 2, 1]], of: .a) == .addresses([address("192.0.2.1")]))
    #expect(RecordData.content([], of: .aaaa) == .noData)
}

@Test func addressSetOverItsBoundIsCut() {
    let many = (0..<200).map { [UInt8(198), 51, 100, UInt8($0)] }
    guard case .addresses(let kept) = RecordData.content(many, of: .a) else {
        Issue.record("no addresses")
        return
    }
    #expect(kept.count == DNSLimits.addressRecords)
}

@Test func exchangerSetOverItsBoundKeepsTheBest() {
    let many = (0..<300).reversed().map { [UInt8($0 >> 8), UInt8($0 & 255)] + wire(["mx\($0)", "example"]) }
    guard case .exchangers(let kept) = RecordData.content(many, of: .mx) else {
        Issue.record("no exchangers")
        return
    }
    #expect(kept.count == DNSLimits.mxRecords)
    #expect(kept.allSatisfy { $0.preference < 100 })
}

@Test func domainsAsTheyAreLookedUp() {
    #expect(DomainName.lookup(Domain("Example.COM.")) == name("example.com"))
    #expect(DomainName.lookup(Domain("bücher.example")) == name("xn--bcher-kva.example"))
    #expect(DomainName.lookup(Domain("faß.example")) == name("xn--fa-hia.example"))
    #expect(DomainName.lookup(Domain("例え.テスト")) == name("xn--r8jz45g.xn--zckzah"))
    #expect(DomainName.lookup(Domain("a..example")) == nil)
    #expect(DomainName.lookup(Domain("a\u{0}.example")) == nil)
    #expect(DomainName.lookup(Domain("10.0.0.1")) == nil)
    #expect(DomainName.lookup(Domain("xn--\u{ff}")) == nil)
    #expect(DomainName.lookup(Domain(String(repeating: "a", count: 64) + ".example")) == nil)
    #expect(DomainName.lookup(Domain(String(repeating: "a.", count: 130) + "example")) == nil)
    #expect(DomainName.lookup(Domain([0xff, 0xfe, 0x2e, 0x61])) == nil)
    #expect(DomainName.lookup(Domain("_dmarc.4you.example2")) == name("_dmarc.4you.example2"))
}

@Test func addressLiterals() {
    #expect(DomainName.literal(name("[192.0.2.1]")) == address("192.0.2.1"))
    #expect(DomainName.literal(name("[IPv6:2001:db8::1]")) == address("2001:db8::1"))
    #expect(DomainName.literal(name("127.0.0.1")) == address("127.0.0.1"))
    #expect(DomainName.literal(name("[]")) == nil)
    #expect(DomainName.literal(name("[192.0.2.1")) == nil)
    #expect(DomainName.literal(name("[192.0.2.1\u{0}]")) == nil)
    #expect(DomainName.literal(name("example.org")) == nil)
}

@Test func serversInConfigurationAndResolvConf() {
    #expect(ResolverServer("127.0.0.1:5353")?.description == "127.0.0.1:5353")
    #expect(ResolverServer("192.0.2.1")?.port == 53)
    #expect(ResolverServer("2001:db8::53")?.description == "[2001:db8::53]:53")
    #expect(ResolverServer("[2001:db8::53]:5353")?.unboundText == "2001:db8::53@5353")
    for wrong in [
        "", "localhost", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:+53", "[127.0.0.1]:53", "[::1]53",
    ] {
        #expect(ResolverServer(wrong) == nil, "\(wrong)")
    }
    let found = ResolverServer.inResolvConf("# x\nnameserver 192.0.2.1\nsearch a\nnameserver\t2001:db8::1\n")
    #expect(found.map(\.description) == ["192.0.2.1:53", "[2001:db8::1]:53"])
    #expect(ResolverServer.inResolvConf("").map(\.description) == ["127.0.0.1:53"])
}

@Test func serversOverTheirBoundAreNotUsed() {
    let text = (1...20).map { "nameserver 192.0.2.\($0)\n" }.joined()
    #expect(ResolverServer.inResolvConf(text).count == DNSLimits.servers)
}
