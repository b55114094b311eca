// The addresses at which this machine can be reached, for recognizing ourselves among a domain's mail servers.
import BatonCore
import Glibc

package enum LocalAddresses {
    /// Interfaces' addresses that are looked at.
    static let addressesMax = 4096

    /// What listeners on `bound` answer to: `0.0.0.0` and `::` stand for all of this machine's addresses (`::` for those of
    /// IPv4 too, as Linux does it), others for themselves. For `PlanSettings.ownAddresses`.
    ///
    /// A snapshot: addresses that come later are known after a reload. Where the system cannot list them, `bound` without the
    /// unspecified ones.
    package static func reachable(at bound: [IPAddress]) -> Set<IPAddress> {
        var found: Set<IPAddress> = []
        var all: [IPAddress]?
        for address in bound {
            guard address.octets.allSatisfy({ $0 == 0 }) else {
                found.insert(address)
                continue
            }
            let mine = all ?? ofInterfaces()
            all = mine
            for candidate in mine where candidate.isIPv4 || !address.isIPv4 { found.insert(candidate) }
        }
        return found
    }

    private static func ofInterfaces() -> [IPAddress] {
        var head: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&head) == 0 else { return [] }
        defer { freeifaddrs(head) }
        var found: [IPAddress] = []
        var next = head
        while let entry = next, found.count < addressesMax {
            next = entry.pointee.ifa_next
            guard let address = entry.pointee.ifa_addr else { continue }
            switch Int32(address.pointee.sa_family) {
            case AF_INET:
                let octets = address.withMemoryRebound(to: sockaddr_in.self, capacity: 1) { pointer in
                    withUnsafeBytes(of: pointer.pointee.sin_addr) { Array($0) }
                }
                if let made = IPAddress(octets: octets) { found.append(made) }
            case AF_INET6:
                let octets = address.withMemoryRebound(to: sockaddr_in6.self, capacity: 1) { pointer in
                    withUnsafeBytes(of: pointer.pointee.sin6_addr) { Array($0) }
                }
                if let made = IPAddress(octets: octets) { found.append(made) }
            default: break
            }
        }
        return found
    }
}
