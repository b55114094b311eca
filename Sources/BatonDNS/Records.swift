// Questions and typed answers of the resolver, and the reading of record data from the wire.
import BatonCore
import BatonModel

/// The record types that Baton asks for.
package enum RecordType: UInt16, Sendable {
    case a = 1
    case soa = 6
    case mx = 15
    case aaaa = 28
}

/// One look-up. `name` is lower case, A-labels, without a trailing dot; empty is the root.
package struct DNSQuestion: Hashable, Sendable {
    package let name: [UInt8]
    package let type: RecordType

    package init(name: [UInt8], type: RecordType) {
        self.name = name
        self.type = type
    }
}

extension DNSQuestion: CustomStringConvertible {
    package var description: String { "\(String(decoding: name, as: UTF8.self)) \(type)" }
}

/// An MX record (RFC 1035 3.3.9).
package struct MXRecord: Hashable, Sendable {
    package enum Exchange: Hashable, Sendable {
        /// The root: "no mail here" if it stands alone (RFC 7505), else ignored.
        case null
        /// A host name, lower case, without a trailing dot.
        case host([UInt8])
        /// A name that no host has: octets outside letters, digits, hyphen and underscore, or an address in place of a name.
        case unusable
    }

    package let preference: UInt16
    package let exchange: Exchange

    package init(preference: UInt16, exchange: Exchange) {
        self.preference = preference
        self.exchange = exchange
    }
}

/// Why a look-up gave no answer.
package enum LookupFailure: Hashable, Sendable {
    /// SERVFAIL, REFUSED or another error code; `rcode` as in the DNS header.
    case refused(rcode: UInt8)
    case timeout
    /// DNSSEC validation failed.
    case bogus
    /// The record data could not be read.
    case malformed
    /// No resolver answers anybody: our own fault.
    case resolverDown
    /// A bound of ours is reached (`DNSLimits.lookupsWaiting`): our own fault.
    case overloaded

    /// Whether the fault is ours, so that no mail is to be counted as tried.
    package var isOurs: Bool { self == .resolverDown || self == .overloaded }

    /// For replies kept with deferred mail.
    package var text: String {
        switch self {
        case .refused(let rcode): rcode == 2 ? "SERVFAIL" : "DNS error code \(rcode)"
        case .timeout: "DNS time-out"
        case .bogus: "DNSSEC validation failed"
        case .malformed: "malformed DNS record"
        case .resolverDown: "no resolver answers"
        case .overloaded: "too many DNS look-ups"
        }
    }
}

/// What the resolver says to a question. CNAMEs have been followed (a bounded number of them) by the resolver.
package struct DNSAnswer: Hashable, Sendable {
    package enum Content: Hashable, Sendable {
        case addresses([IPAddress])
        case exchangers([MXRecord])
        /// The name exists, with records of a type that Baton does not read (only the DNSSEC probe asks for such).
        case other
        /// The name exists and has no such record.
        case noData
        /// NXDOMAIN.
        case noSuchName
        case failed(LookupFailure)
    }

    package let content: Content
    /// Seconds; for negative answers the SOA's minimum (RFC 2308), nil if the answer had none, nil for failures.
    package let ttl: UInt32?
    /// DNSSEC-secure, CNAMEs included.
    package let secure: Bool

    package init(_ content: Content, ttl: UInt32? = nil, secure: Bool = false) {
        self.content = content
        self.ttl = ttl
        self.secure = secure
    }
}

/// A question with its answer.
package struct DNSReply: Sendable {
    package let question: DNSQuestion
    package let answer: DNSAnswer

    package init(question: DNSQuestion, answer: DNSAnswer) {
        self.question = question
        self.answer = answer
    }
}

/// Record data from the wire. Nothing here trusts a length; what cannot be read is skipped or named.
package enum RecordData {
    /// The content for records of a type; `.failed(.malformed)` when none of them can be read.
    ///
    /// Of MX records the `DNSLimits.mxRecords` of lowest preference are kept, of addresses the first
    /// `DNSLimits.addressRecords`.
    package static func content(_ records: [[UInt8]], of type: RecordType) -> DNSAnswer.Content {
        guard !records.isEmpty else { return .noData }
        switch type {
        case .a, .aaaa:
            let width = type == .a ? 4 : 16
            var seen: Set<IPAddress> = []
            var addresses: [IPAddress] = []
            for record in records where record.count == width && addresses.count < DNSLimits.addressRecords {
                guard let address = IPAddress(octets: record), seen.insert(address).inserted else { continue }
                addresses.append(address)
            }
            return addresses.isEmpty ? .failed(.malformed) : .addresses(addresses)
        case .mx:
            var exchangers = records.compactMap { mx($0) }
            guard !exchangers.isEmpty else { return .failed(.malformed) }
            if exchangers.count > DNSLimits.mxRecords {
                exchangers.sort { $0.preference < $1.preference }
                exchangers.removeLast(exchangers.count - DNSLimits.mxRecords)
            }
            return .exchangers(exchangers)
        case .soa: return .other
        }
    }

    /// Preference and exchange; nil if the octets are no MX record. No compression pointers: the resolver has removed them.
    package static func mx(_ data: [UInt8]) -> MXRecord? {
        guard data.count >= 3 else { return nil }
        let preference = UInt16(data[0]) << 8 | UInt16(data[1])
        guard let labels = labels(data[2...]) else { return nil }
        if labels.isEmpty { return MXRecord(preference: preference, exchange: .null) }
        let name = Array(labels.joined(separator: [UInt8(ascii: ".")]))
        let clean = labels.allSatisfy { label in !label.contains(UInt8(ascii: ".")) }
        guard clean, let host = DomainName.host(name) else {
            return MXRecord(preference: preference, exchange: .unusable)
        }
        return MXRecord(preference: preference, exchange: .host(host))
    }

    /// The labels of an uncompressed name that fills `data` exactly (RFC 1035 3.1); nil for anything else.
    private static func labels(_ data: ArraySlice<UInt8>) -> [ArraySlice<UInt8>]? {
        guard data.count <= DomainName.wireOctets else { return nil }
        var rest = data
        var labels: [ArraySlice<UInt8>] = []
        while let length = rest.popFirst() {
            if length == 0 { return rest.isEmpty ? labels : nil }
            guard length <= DomainName.labelOctets, Int(length) <= rest.count else { return nil }
            labels.append(rest.prefix(Int(length)))
            rest = rest.dropFirst(Int(length))
        }
        return nil
    }
}
