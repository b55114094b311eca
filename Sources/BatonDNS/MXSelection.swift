// Which hosts of an MX set may be tried, in which order: pure functions over records.
import BatonCore

/// The order and choice of addresses (`delivery.address_family`).
package enum AddressFamily: String, CaseIterable, Sendable {
    case preferIPv4 = "prefer_ipv4"
    case preferIPv6 = "prefer_ipv6"
    case ipv4
    case ipv6

    /// Record types in the order of preference.
    package var types: [RecordType] {
        switch self {
        case .preferIPv4: [.a, .aaaa]
        case .preferIPv6: [.aaaa, .a]
        case .ipv4: [.a]
        case .ipv6: [.aaaa]
        }
    }
}

/// What configuration says about plans.
package struct PlanSettings: Sendable {
    /// `delivery.address_family`.
    package var addressFamily: AddressFamily
    /// `delivery.allow_private_addresses`: for addresses found through DNS and for address literals, never for routes.
    package var allowPrivateAddresses: Bool
    /// `node.hostname` and other names of this node and its cluster, lower case, A-labels.
    package var ownNames: Set<[UInt8]>
    /// Addresses at which this node or its cluster takes mail on `delivery.port`; nothing else belongs here.
    package var ownAddresses: Set<IPAddress>

    package init(
        addressFamily: AddressFamily = .preferIPv4, allowPrivateAddresses: Bool = false, ownNames: Set<[UInt8]> = [],
        ownAddresses: Set<IPAddress> = []
    ) {
        self.addressFamily = addressFamily
        self.allowPrivateAddresses = allowPrivateAddresses
        self.ownNames = ownNames
        self.ownAddresses = ownAddresses
    }
}

/// A host that may be tried once its addresses are known.
package struct MXCandidate: Hashable, Sendable {
    package let preference: UInt16
    package let name: [UInt8]
}

package enum MXSelection: Hashable, Sendable {
    /// By preference, at random among equals (RFC 5321 5.1); each name once. Never empty.
    case candidates([MXCandidate])
    case nullMX
    /// Records, but none that names a usable host.
    case noUsableTarget
    /// Our own name at the best preference.
    case mailLoop

    /// Chooses among a domain's MX records (never empty). Our own name takes its preference and all worse ones away.
    package static func of(
        _ records: [MXRecord], settings: PlanSettings, using random: inout SplitMix64
    ) -> MXSelection {
        if records.allSatisfy({ $0.exchange == .null }) { return records.isEmpty ? .noUsableTarget : .nullMX }
        var best: [[UInt8]: UInt16] = [:]
        var ownPreference: UInt16?
        for record in records {
            guard case .host(let name) = record.exchange else { continue }
            if settings.ownNames.contains(name) {
                ownPreference = min(ownPreference ?? .max, record.preference)
                continue
            }
            if DomainName.isLocalhost(name), !settings.allowPrivateAddresses { continue }
            best[name] = min(best[name] ?? .max, record.preference)
        }
        // Dictionary order differs between runs; the seed alone is to decide, so names are sorted before they are shuffled.
        var candidates = best.map { MXCandidate(preference: $0.value, name: $0.key) }
            .sorted { $0.name.lexicographicallyPrecedes($1.name) }
        if let ownPreference {
            candidates.removeAll { $0.preference >= ownPreference }
            if candidates.isEmpty { return .mailLoop }
        }
        guard !candidates.isEmpty else { return .noUsableTarget }
        candidates.shuffle(using: &random)
        // Swift's sort is stable in practice but not by contract: the shuffled place decides among equals.
        let ordered = candidates.enumerated().sorted {
            ($0.element.preference, $0.offset) < ($1.element.preference, $1.offset)
        }
        return .candidates(ordered.map(\.element))
    }

    /// A host's addresses in the order in which to try them: by family, at random within it.
    package static func ordered(
        _ addresses: [IPAddress], by family: AddressFamily, using random: inout SplitMix64
    ) -> [IPAddress] {
        let shuffled = addresses.shuffled(using: &random)
        let four = shuffled.filter(\.isIPv4)
        let six = shuffled.filter { !$0.isIPv4 }
        switch family {
        case .preferIPv4: return four + six
        case .preferIPv6: return six + four
        case .ipv4: return four
        case .ipv6: return six
        }
    }
}
