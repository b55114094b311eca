// Where a domain's mail goes, as delivery needs it: hosts in the order in which to try them, with addresses.
import BatonCore
import BatonModel

/// A mail exchanger with its usable addresses.
package struct MXHost: Hashable, Sendable {
    package let preference: UInt16
    /// Lower case, A-labels, no trailing dot.
    package let name: [UInt8]
    /// In the order of `address_family`; at least one; private ones already removed unless allowed.
    package let addresses: [IPAddress]

    package init(preference: UInt16, name: [UInt8], addresses: [IPAddress]) {
        self.preference = preference
        self.name = name
        self.addresses = addresses
    }
}

/// A domain's plan, valid until `expires`.
package struct MXPlan: Sendable {
    package enum Verdict: Sendable {
        /// Hosts by preference, at random among equals (RFC 5321 5.1). Never empty.
        case hosts([MXHost])
        /// Null MX (RFC 7505): bounce 5.1.10.
        case nullMX
        /// NXDOMAIN: bounce 5.1.2.
        case noSuchDomain
        /// MX without a usable target, or no MX and no address: bounce 5.4.4.
        case noAddress
        /// We are the best MX: bounce 5.4.6.
        case mailLoop
        /// SERVFAIL, time-out or bogus among what decides: defer.
        case temporary(reason: String)
        /// No resolver answered at all: our own fault, no attempt counted.
        case resolverDown
    }

    package let verdict: Verdict
    package let expires: Instant
    /// Whether MX answer and all address answers were DNSSEC-secure (for DANE).
    package let secure: Bool

    package init(verdict: Verdict, expires: Instant, secure: Bool) {
        self.verdict = verdict
        self.expires = expires
        self.secure = secure
    }
}

/// Plans domains for the delivery side of one loop. Called on that loop; the answer comes on that loop, at once when cached.
package protocol MXPlanning: AnyObject, Sendable {
    func plan(_ domain: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void)
    /// Addresses of a route's next hop (A and AAAA, no MX; private ones allowed), as a plan of one host.
    func planHost(_ name: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void)
}
