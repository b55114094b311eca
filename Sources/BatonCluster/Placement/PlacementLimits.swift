// The bounds of placement and SUBMIT; docs/LIMITS.md says what happens at each.
import BatonCore

package enum PlacementLimits {
    /// Domains whose rate is measured.
    package static let ratedDomains = 16_384
    /// Time constant of the measured rate.
    package static let rateSpan = TimeSpan.seconds(10)
    /// SUBMITs to one node whose fate is not known, held copies included.
    package static let unanswered = 256
    /// Octets of SUBMITs to one node that wait for their answer.
    package static let unansweredOctets = 8 * ByteCount.mebi
    /// From the sending of a SUBMIT to the storing of an own copy, held back.
    package static let deadline = TimeSpan.seconds(1)
    /// How long a held copy asks before it is delivered and counted.
    package static let hold = TimeSpan.seconds(15)
    /// A held copy that this disk refused is tried again after this, for as long as the hold lasts.
    package static let storeAgain = TimeSpan.milliseconds(300)
    /// Between two rounds of ASK.
    package static let askInterval = TimeSpan.milliseconds(500)
    /// How long an answered key is remembered by its receiver (S1, S7): longer than the hold.
    package static let remember = TimeSpan.seconds(40)
    /// Keys that a receiver remembers.
    package static let remembered = 262_144
    /// Segments taken over of which it is remembered that they have all their copies again.
    package static let wholeSegments = 4_096
    /// Incoming SUBMITs that wait for the spool.
    package static let incoming = 4_096
    /// Runs of ingress nodes of which something was forgotten.
    package static let forgottenRuns = 1_024
    /// Held messages in memory.
    package static let held = 65_536
    /// Least time between two ticks that do work.
    package static let tick = TimeSpan.milliseconds(50)
}
