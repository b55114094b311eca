// The bounds of the DNS part; docs/LIMITS.md says what happens at each.
import BatonCore

package enum DNSLimits {
    /// MX records of a domain that are considered, those of lowest preference.
    package static let mxRecords = 100
    /// Addresses of a host that are kept.
    package static let addressRecords = 32
    /// Hosts whose addresses are looked up at a time; more only when none of these has any.
    package static let hostsAtOnce = 8
    /// Look-ups that libunbound works on at once, for the whole process.
    package static let lookupsAtOnce = 256
    /// Look-ups waiting for libunbound, for the whole process; more fail as `overloaded`.
    package static let lookupsWaiting = 16_384
    /// Plans being made on one loop; more end as `resolverDown` at once.
    package static let plansAtOnce = 8192
    /// Callers waiting for plans on one loop; more end as `resolverDown` at once.
    package static let planWaiters = 32_768
    /// Octets of answers cached on one loop (an estimate by record); the least recently useful ones leave.
    package static let cacheBytes = 16 * ByteCount.mebi
    /// Bounds of a positive TTL above 0. A TTL of 0 is never cached.
    package static let ttlMin = TimeSpan.seconds(5)
    package static let ttlMax = TimeSpan.hours(1)
    /// Longest time that a negative answer is believed, and the time where the answer itself had no SOA.
    package static let negativeMax = TimeSpan.minutes(15)
    package static let negativeDefault = TimeSpan.minutes(1)
    /// How long a failed look-up is remembered, so that a broken domain is not asked about for every message.
    package static let failureSpan = TimeSpan.seconds(30)
    /// Shortest life of a plan: with TTL 0, at most one look-up of a domain in this time.
    package static let planMin = TimeSpan.seconds(1)
    /// Time in which a resolver has to answer the question whether it is there, and how often that is asked while it is not.
    package static let probeTimeout = TimeSpan.seconds(2)
    package static let probeInterval = TimeSpan.seconds(5)
    /// How often a resolver that could not be asked about DNSSEC is asked again.
    package static let dnssecInterval = TimeSpan.seconds(30)
    /// Servers in the configuration or resolv.conf that are used.
    package static let servers = 8
}
