// Names as they are looked up: lower case, A-labels, checked for length and letters.
import BatonCore
import BatonModel
import CIDN2
import Glibc

package enum DomainName {
    /// A name on the wire, length octets and root included (RFC 1035 2.3.4).
    package static let wireOctets = 255
    package static let labelOctets = 63
    /// The same in text without a trailing dot.
    package static let textOctets = 253

    /// The name to look up for a domain: lower case, U-labels turned into A-labels by IDNA 2008 (libidn2). Nil if no such name
    /// can exist in the DNS.
    package static func lookup(_ domain: Domain) -> [UInt8]? {
        domain.isInternational ? aLabels(domain.bytes).flatMap { host($0) } : host(domain.bytes)
    }

    /// Lower-cases and checks letters (digits, hyphen, underscore), label and name lengths; one trailing dot is dropped.
    ///
    /// Nil for what is no name of a host, addresses in text included: `10.0.0.1` is nobody's name.
    package static func host(_ raw: some Collection<UInt8>) -> [UInt8]? {
        guard raw.count <= textOctets + 1 else { return nil }
        var name: [UInt8] = []
        name.reserveCapacity(raw.count)
        var label = 0
        var digitsOnly = true
        for byte in raw {
            switch byte {
            case UInt8(ascii: "."):
                guard label > 0 else { return nil }
                label = 0
                name.append(byte)
                continue
            case 0x30...0x39: name.append(byte)
            case 0x61...0x7a, UInt8(ascii: "-"), UInt8(ascii: "_"): name.append(byte)
            case 0x41...0x5a: name.append(byte | 0x20)
            default: return nil
            }
            if label == 0 { digitsOnly = true }
            if byte < 0x30 || byte > 0x39 { digitsOnly = false }
            label += 1
            guard label <= labelOctets else { return nil }
        }
        if name.last == UInt8(ascii: ".") { name.removeLast() }
        // The last label of a name is never all digits (RFC 3696 2), so that 1.2.3.4 is an address and not a name.
        guard !name.isEmpty, name.count <= textOctets, !digitsOnly else { return nil }
        return name
    }

    /// `localhost` and everything under it (RFC 6761 6.3).
    package static func isLocalhost(_ name: [UInt8]) -> Bool {
        let localhost = Array("localhost".utf8)
        return name == localhost || (name.count > localhost.count && name.suffix(10).elementsEqual(".localhost".utf8))
    }

    /// The address in `[192.0.2.1]`, `[IPv6:2001:db8::1]` or without brackets; nil for names.
    package static func literal(_ bytes: [UInt8]) -> IPAddress? {
        var inner = bytes[...]
        if inner.first == UInt8(ascii: "[") {
            guard inner.last == UInt8(ascii: "]"), inner.count > 2 else { return nil }
            inner = inner.dropFirst().dropLast()
        }
        let prefix = Array("ipv6:".utf8)
        if inner.count > prefix.count,
            inner.prefix(prefix.count).elementsEqual(prefix, by: { ($0 | 0x20) == $1 | 0x20 })
        {
            inner = inner.dropFirst(prefix.count)
        }
        guard inner.count <= 64, !inner.contains(0) else { return nil }
        return IPAddress(String(decoding: inner, as: UTF8.self))
    }

    private static func aLabels(_ bytes: [UInt8]) -> [UInt8]? {
        guard bytes.count <= 1024, !bytes.contains(0) else { return nil }
        var output: UnsafeMutablePointer<UInt8>?
        let flags = Int32(IDN2_NFC_INPUT.rawValue | IDN2_NONTRANSITIONAL.rawValue)
        let result = (bytes + [0]).withUnsafeBufferPointer { idn2_lookup_u8($0.baseAddress, &output, flags) }
        guard let output else { return nil }
        defer { idn2_free(output) }
        guard result == IDN2_OK.rawValue else { return nil }
        var name: [UInt8] = []
        var next = output
        while next.pointee != 0, name.count <= wireOctets {
            name.append(next.pointee)
            next += 1
        }
        return name
    }
}
