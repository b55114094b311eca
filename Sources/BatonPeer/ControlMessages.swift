// The payloads of promises, shares and operators' questions: PROMISE_ASKED, PROMISE, QUOTA, QUERY, ANSWER.
import BatonCore
import NIOCore

/// A segment for whose final dots a promise is asked or given: `segment id   24 u64 drain epoch`.
package struct PromiseItem: Hashable, Sendable {
    package var segment: SegmentID
    package var epoch: UInt64

    package static let length = 32

    package init(segment: SegmentID, epoch: UInt64) {
        self.segment = segment
        self.epoch = epoch
    }

    static func write(_ items: [PromiseItem], into buffer: inout ByteBuffer) {
        for item in items {
            buffer.writeSegment(item.segment)
            buffer.writeInteger(item.epoch, endianness: .little)
        }
    }

    /// Exactly `count` items; a count that the octets cannot hold is refused before anything is reserved.
    static func read(_ count: UInt32, from payload: inout ByteBuffer) -> [PromiseItem]? {
        guard count <= UInt32(PeerLimits.promiseItems), Int(count) * length == payload.readableBytes else { return nil }
        var items: [PromiseItem] = []
        items.reserveCapacity(Int(count))
        for _ in 0..<count {
            guard let segment = payload.readSegment(), let epoch: UInt64 = payload.readInteger(endianness: .little)
            else { return nil }
            items.append(PromiseItem(segment: segment, epoch: epoch))
        }
        return items
    }
}

/// A drainer asks for fresh promises (PROTOCOL P1).
///
/// `u64 number   8 i64 asker's time (ns), comes back   16 u32 items   20 items`
package struct PromiseAsked: FramePayload {
    package var number: UInt64
    package var askedAt: Instant
    package var items: [PromiseItem]

    package static let type = FrameType.promiseAsked

    package init(number: UInt64, askedAt: Instant, items: [PromiseItem]) {
        self.number = number
        self.askedAt = askedAt
        self.items = items
    }

    package var isValid: Bool { (1...PeerLimits.promiseItems).contains(items.count) }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(
            number, askedAt.nanoseconds, UInt32(clamping: items.count), endianness: .little)
        PromiseItem.write(items, into: &buffer)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard
            let (number, at, count) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, UInt32).self),
            let items = PromiseItem.read(count, from: &payload)
        else { return nil }
        self.init(number: number, askedAt: Instant(nanoseconds: at), items: items)
    }
}

/// The items for which this copy promises that no seal of it at a higher epoch is there, nor finishes within `span`.
///
/// `u64 number   8 i64 asker's time   16 u32 span (ms)   20 u32 items   24 items`
package struct Promise: FramePayload {
    package var number: UInt64
    package var askedAt: Instant
    /// Whole milliseconds. Counts from the giving for the giver, and from the asking for the asker.
    package var span: TimeSpan
    package var items: [PromiseItem]

    package static let type = FrameType.promise

    package init(number: UInt64, askedAt: Instant, span: TimeSpan, items: [PromiseItem]) {
        self.number = number
        self.askedAt = askedAt
        self.span = span
        self.items = items
    }

    package var isValid: Bool {
        items.count <= PeerLimits.promiseItems && WireSpan.isValid(span, zeroAllowed: false)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(
            number, askedAt.nanoseconds, WireSpan.milliseconds(span), UInt32(clamping: items.count), endianness: .little
        )
        PromiseItem.write(items, into: &buffer)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard
            let (number, at, span, count) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, UInt32, UInt32).self),
            let items = PromiseItem.read(count, from: &payload)
        else { return nil }
        self.init(
            number: number, askedAt: Instant(nanoseconds: at), span: .milliseconds(Int64(span)), items: items)
    }
}

/// Spans travel as whole milliseconds.
enum WireSpan {
    static func isValid(_ span: TimeSpan, zeroAllowed: Bool) -> Bool {
        span.nanoseconds % 1_000_000 == 0 && span <= PeerLimits.spanMax
            && (zeroAllowed ? span >= .zero : span > .zero)
    }

    static func milliseconds(_ span: TimeSpan) -> UInt32 { UInt32(clamping: span.nanoseconds / 1_000_000) }
}

/// Shares of a site's limits between its home and the nodes that have mail for it (DESIGN "Cluster-wide limits").
///
/// ```
///  0  u8 verb    1  u8 kind    2  u16 length of site    4  u32 span (ms)
///  8  u64 request    16  u64 share    24  u64 amount    32  site
/// ```
package struct Quota: FramePayload {
    package enum Verb: UInt8, CaseIterable, Sendable {
        /// Asks for `amount`, under the share to renew, or under 0 for a new one.
        case request = 1
        /// Gives `amount` for `span` from the request; share and amount 0: nothing now, ask again after `span`.
        case grant = 2
        /// Gives back `amount` of a share before it ends.
        case returned = 3
    }

    package enum Kind: UInt8, CaseIterable, Sendable {
        case connections = 1
        /// Messages per hour.
        case rate = 2
    }

    package var verb: Verb
    package var kind: Kind
    package var span: TimeSpan
    package var request: UInt64
    package var share: UInt64
    package var amount: UInt64
    package var site: [UInt8]

    package static let type = FrameType.quota

    package init(
        verb: Verb, kind: Kind, span: TimeSpan, request: UInt64, share: UInt64, amount: UInt64, site: [UInt8]
    ) {
        self.verb = verb
        self.kind = kind
        self.span = span
        self.request = request
        self.share = share
        self.amount = amount
        self.site = site
    }

    package var isValid: Bool {
        guard (1...PeerLimits.siteOctets).contains(site.count) else { return false }
        switch verb {
        case .request: return span == .zero && amount > 0
        case .grant: return WireSpan.isValid(span, zeroAllowed: false) && (share == 0) == (amount == 0)
        case .returned: return span == .zero && share != 0
        }
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(
            verb.rawValue, kind.rawValue, UInt16(clamping: site.count), WireSpan.milliseconds(span), request, share,
            amount, endianness: .little)
        buffer.writeBytes(site)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard
            let (verbValue, kindValue, length, span, request, share, amount) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt8, UInt8, UInt16, UInt32, UInt64, UInt64, UInt64).self),
            let verb = Verb(rawValue: verbValue), let kind = Kind(rawValue: kindValue),
            let site = payload.readBytes(length: Int(length))
        else { return nil }
        self.init(
            verb: verb, kind: kind, span: .milliseconds(Int64(span)), request: request, share: share, amount: amount,
            site: site)
    }
}

/// An operator's question, passed on: `u64 request   8 u16 n, name   JSON to the end`.
package struct Query: FramePayload {
    package var request: UInt64
    /// What is asked, in the words of the admin interface.
    package var name: [UInt8]
    package var json: ByteBuffer

    package static let type = FrameType.query

    package init(request: UInt64, name: [UInt8], json: ByteBuffer) {
        self.request = request
        self.name = name
        self.json = json
    }

    package var isValid: Bool { (1...PeerLimits.queryNameOctets).contains(name.count) }
    package var tail: ByteBuffer? { json }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeInteger(request, endianness: .little)
        buffer.writeShort(name)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let request: UInt64 = payload.readInteger(endianness: .little), let name = payload.readShort() else {
            return nil
        }
        self.init(request: request, name: name, json: payload.readRest())
    }
}

/// `u64 request   8 u16 status (as in HTTP)   10 u16 zero   JSON to the end`
package struct Answer: FramePayload {
    package var request: UInt64
    package var status: UInt16
    package var json: ByteBuffer

    package static let type = FrameType.answer

    package init(request: UInt64, status: UInt16, json: ByteBuffer) {
        self.request = request
        self.status = status
        self.json = json
    }

    package var isValid: Bool { (100...599).contains(status) }
    package var tail: ByteBuffer? { json }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(request, status, UInt16(0), endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard
            let (request, status, zero) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt16, UInt16).self), zero == 0
        else { return nil }
        self.init(request: request, status: status, json: payload.readRest())
    }
}
