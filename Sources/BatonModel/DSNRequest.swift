// What a sender asks of delivery status notifications (RFC 3461 4).

/// NOTIFY of one recipient (RFC 3461 4.1). Empty means that the sender said nothing: failures are reported.
package struct NotifyFlags: OptionSet, Hashable, Sendable {
    package let rawValue: UInt8

    package init(rawValue: UInt8) {
        self.rawValue = rawValue
    }

    package static let never = NotifyFlags(rawValue: 1)
    package static let success = NotifyFlags(rawValue: 2)
    package static let failure = NotifyFlags(rawValue: 4)
    package static let delay = NotifyFlags(rawValue: 8)

    package var wantsFailure: Bool { isEmpty || contains(.failure) }
    package var wantsSuccess: Bool { contains(.success) }
    package var wantsDelay: Bool { contains(.delay) }
}

/// RET of a message (RFC 3461 4.3).
package enum ReturnContent: UInt8, Sendable {
    case unspecified = 0
    case full = 1
    case headers = 2
}
