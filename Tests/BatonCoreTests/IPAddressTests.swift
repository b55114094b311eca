// Addresses and blocks: spelling, mapping, membership, what counts as private.
import BatonCore
import Testing

@Test func addressSpeltOddly() {
    for text in [
        "", "1", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "0x7f.0.0.1", "1.2.3.4 ", "::1%lo", "[::1]", "1::2::3",
        "localhost", "１.2.3.4",
    ] { #expect(IPAddress(text) == nil, "\(text)") }
    #expect(IPAddress("2001:DB8:0::1")?.description == "2001:db8::1")
}

@Test func mappedAddressIsItsIPv4Form() {
    #expect(IPAddress("::ffff:192.0.2.1") == IPAddress("192.0.2.1"))
    #expect(IPAddress("::ffff:c000:201")?.isIPv4 == true)
    #expect(IPAddress(octets: [UInt8](repeating: 0, count: 5)) == nil)
    #expect(IPAddress(octets: [UInt8]()) == nil)
}

@Test func privateAndPublicAddresses() {
    let hidden = [
        "0.0.0.0", "0.1.2.3", "10.255.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255",
        "169.254.0.1",
        "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.168.255.255", "198.18.0.1", "198.19.255.255", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::", "::1", "::10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1",
        "64:ff9b:1::1",
        "100::1", "fc00::1", "fdff::1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "2002:0a00:0001::1",
    ]
    for text in hidden { #expect(IPAddress(text)?.isPrivate == true, "\(text)") }
    let open = [
        "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1",
        "172.15.255.255", "172.32.0.0", "192.0.1.1", "192.167.255.255", "198.17.255.255", "198.20.0.0",
        "223.255.255.255",
        "2001:db8::1", "2606:4700::1", "64:ff9b::8.8.8.8", "2002:0808:0808::1",
    ]
    for text in open { #expect(IPAddress(text)?.isPrivate == false, "\(text)") }
}

@Test func blockSpeltOddlyOrWithHostBits() {
    for text in [
        "", "/", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0.1/8",
        "10.0.0.128/24",
        "2001:db8::/129", "2001:db8::1/64", "example/8", "10.0.0.0/8 ",
    ] { #expect(AddressBlock(text) == nil, "\(text)") }
    #expect(AddressBlock("10.0.0.0/8") != nil)
    #expect(AddressBlock("0.0.0.0/0") != nil)
    #expect(AddressBlock("192.0.2.128/25") != nil)
}

@Test func addressAtTheEdgeOfABlock() throws {
    func member(_ address: String, _ block: String) -> Bool? {
        guard let block = AddressBlock(block), let address = IPAddress(address) else { return nil }
        return block.contains(address)
    }
    #expect(member("192.0.2.127", "192.0.2.128/25") == false)
    #expect(member("192.0.2.128", "192.0.2.128/25") == true)
    #expect(member("192.0.2.255", "192.0.2.128/25") == true)
    #expect(member("192.0.3.0", "192.0.2.128/25") == false)
    #expect(member("192.0.2.1", "192.0.2.1") == true)
    #expect(member("192.0.2.2", "192.0.2.1/32") == false)
    #expect(member("255.1.2.3", "0.0.0.0/0") == true)
    #expect(member("::1", "0.0.0.0/0") == false)
    #expect(member("192.0.2.1", "::/0") == false)
    #expect(member("2001:db8:0:1::1", "2001:db8::/63") == true)
    #expect(member("2001:db8:0:2::1", "2001:db8::/63") == false)
}

@Test func clientNetworkJoinsIPv6ByPrefixAndIPv4Not() {
    #expect(IPAddress("2001:db8::1")?.clientNetwork == IPAddress("2001:db8::ffff")?.clientNetwork)
    #expect(IPAddress("2001:db8::1")?.clientNetwork != IPAddress("2001:db8:0:1::1")?.clientNetwork)
    #expect(IPAddress("192.0.2.1")?.clientNetwork != IPAddress("192.0.2.2")?.clientNetwork)
}
