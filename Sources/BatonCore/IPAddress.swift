// IP addresses and blocks as values, for relay policy, resolved hosts and the ban on private targets.
import Glibc

/// An IPv4 or IPv6 address. An IPv4-mapped IPv6 address is turned into its IPv4 form when made.
package struct IPAddress: Hashable, Sendable {
    /// 4 or 16 octets in network order.
    package let octets: [UInt8]

    /// Nil unless there are 4 or 16 octets.
    package init?(octets: some Collection<UInt8>) {
        let all = Array(octets)
        switch all.count {
        case 4: self.octets = all
        case 16:
            let mapped = all.prefix(10).allSatisfy { $0 == 0 } && all[10] == 0xff && all[11] == 0xff
            self.octets = mapped ? Array(all[12...]) : all
        default: return nil
        }
    }

    /// Reads `192.0.2.1` or `2001:db8::1` by inet_pton: no names, no zones, no octal.
    package init?(_ text: String) {
        var four = in_addr()
        var six = in6_addr()
        if inet_pton(AF_INET, text, &four) == 1 {
            self.init(octets: withUnsafeBytes(of: &four) { Array($0) })
        } else if inet_pton(AF_INET6, text, &six) == 1 {
            self.init(octets: withUnsafeBytes(of: &six) { Array($0) })
        } else {
            return nil
        }
    }

    package var isIPv4: Bool { octets.count == 4 }

    /// Loopback, private, link-local, CGNAT, ULA, multicast, unspecified, documentation-free reserved and the like: never a
    /// target found through DNS unless `delivery.allow_private_addresses` says so (notes: SSRF by MX).
    ///
    /// NAT64 (RFC 6052) and 6to4 (RFC 3056) addresses are what the IPv4 address inside them is.
    package var isPrivate: Bool {
        if let inner = translatedIPv4 { return inner.isPrivate }
        return Self.privateBlocks.contains { $0.contains(self) }
    }

    private var translatedIPv4: IPAddress? {
        guard !isIPv4 else { return nil }
        if octets.starts(with: Self.nat64Prefix) { return IPAddress(octets: octets[12...]) }
        if octets.starts(with: Self.sixToFourPrefix) { return IPAddress(octets: octets[2..<6]) }
        return nil
    }

    private static let nat64Prefix: [UInt8] = [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]
    private static let sixToFourPrefix: [UInt8] = [0x20, 0x02]

    private static let privateBlocks: [AddressBlock] = [
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3", "::/96", "64:ff9b:1::/48", "100::/64", "fc00::/7",
        "fe80::/10",
        "fec0::/10", "ff00::/8",
    ].compactMap { AddressBlock($0) }

    /// The network that per-client limits count: /32 of IPv4, /64 of IPv6.
    package var clientNetwork: [UInt8] { isIPv4 ? octets : Array(octets.prefix(8)) }
}

extension IPAddress: CustomStringConvertible {
    package var description: String {
        var text = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
        let family = isIPv4 ? AF_INET : AF_INET6
        let made = octets.withUnsafeBytes { inet_ntop(family, $0.baseAddress, &text, socklen_t(text.count)) != nil }
        return made ? String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self) : "?"
    }
}

/// An address block in CIDR notation; a bare address is a block of one.
package struct AddressBlock: Hashable, Sendable {
    package let base: IPAddress
    package let prefixLength: Int

    /// Nil for anything but `address` or `address/length` with a length that fits; host bits must be zero.
    package init?(_ text: String) {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard let first = parts.first, parts.count <= 2, let base = IPAddress(String(first)) else { return nil }
        let width = base.octets.count * 8
        var length = width
        if parts.count == 2 {
            guard let given = Int(parts[1]), given >= 0, given <= width, !parts[1].hasPrefix("+") else { return nil }
            length = given
        }
        self.base = base
        self.prefixLength = length
        for index in base.octets.indices {
            let bits = min(8, max(0, length - index * 8))
            if base.octets[index] & UInt8(truncatingIfNeeded: 0xff >> bits) != 0, bits < 8 { return nil }
        }
    }

    package func contains(_ address: IPAddress) -> Bool {
        guard address.octets.count == base.octets.count else { return false }
        var left = prefixLength
        for (mine, other) in zip(base.octets, address.octets) {
            if left <= 0 { return true }
            let mask: UInt8 = left >= 8 ? 0xff : ~(0xff >> UInt8(left))
            if mine & mask != other & mask { return false }
            left -= 8
        }
        return true
    }
}
