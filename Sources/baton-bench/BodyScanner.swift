// The DATA stream at the sink: end of data, dot-unstuffing, and the digest of what lies behind our id field.
import BatonCore
import CBatonSystem
import Glibc

/// Finds `CR LF . CR LF` and takes stuffed dots away, at any split of the stream. Written apart from Baton's own
/// framing on purpose: the bench is an oracle for it.
struct BodyScanner: Sendable {
    private enum State: Sendable {
        case lineStart
        case text
        case cr
        case dot
        case dotCR
    }
    private var state = State.lineStart

    /// Feeds octets; `emit` gets the message's own octets in order. Returns how many octets were used, and whether the end was met.
    mutating func consume(_ bytes: UnsafeRawBufferPointer, emit: (UnsafeRawBufferPointer) -> Void) -> (
        used: Int, ended: Bool
    ) {
        var at = 0
        var from = 0
        func span(_ low: Int, _ high: Int) {
            if high > low { emit(UnsafeRawBufferPointer(rebasing: bytes[low..<high])) }
        }
        while at < bytes.count {
            switch state {
            case .lineStart:
                if bytes[at] == 0x2e {
                    // The dot is either stuffing or the end: neither is part of the message.
                    span(from, at)
                    at += 1
                    from = at
                    state = .dot
                } else {
                    state = .text
                }
            case .text:
                guard let base = bytes.baseAddress, let found = memchr(base + at, 0x0d, bytes.count - at) else {
                    at = bytes.count
                    break
                }
                at = UnsafeRawPointer(found) - base + 1
                state = .cr
            case .cr:
                if bytes[at] == 0x0a {
                    at += 1
                    state = .lineStart
                } else {
                    state = .text
                }
            case .dot:
                if bytes[at] == 0x0d {
                    at += 1
                    state = .dotCR
                } else {
                    state = .text
                }
            case .dotCR:
                if bytes[at] == 0x0a { return (at + 1, true) }
                // A stuffed dot before a bare CR: the CR belongs to the text.
                if at > from { span(from, at) } else { withUnsafeBytes(of: UInt8(0x0d)) { emit($0) } }
                from = at
                state = bytes[at] == 0x0d ? .cr : .text
                if bytes[at] == 0x0d { at += 1 }
            }
        }
        // A CR right behind a dot may belong to the end mark; it is handed over once that is settled.
        span(from, state == .dotCR ? max(from, at - 1) : at)
        return (at, false)
    }
}

/// Takes a message's octets and ends with its id and digest. Memory: the search window, or `wholeBound` when all is kept.
struct MessageCollector: Sendable {
    /// Octets kept of a message when it is kept whole (reports, `--keep`); a longer one is cut there, digest included.
    static let wholeBound = 64 * 1024 * 1024
    /// How far our id field is looked for: relays put their own fields above it.
    static let searchBound = 64 * 1024
    private static let field: [UInt8] = Array("X-Bench-Id: ".utf8)

    private(set) var kept: [UInt8] = []
    private var found = false
    private var checksum: UInt32 = 0
    private var length = 0
    private var total = 0
    private let keepsWhole: Bool
    private(set) var id: BenchID?
    private(set) var queueID: [UInt8] = []

    init(keepsWhole: Bool) { self.keepsWhole = keepsWhole }

    mutating func append(_ bytes: UnsafeRawBufferPointer) {
        var rest = bytes
        total += bytes.count
        if keepsWhole {
            let room = max(0, Self.wholeBound - kept.count)
            kept.append(contentsOf: rest.prefix(room))
            return
        }
        while !found, !rest.isEmpty {
            let piece = UnsafeRawBufferPointer(rebasing: rest[..<min(rest.count, 1024)])
            rest = UnsafeRawBufferPointer(rebasing: rest[piece.count...])
            kept.append(contentsOf: piece)
            search()
            if !found, kept.count > Self.searchBound { beginForeign() }
        }
        if found { digest(rest) }
    }

    private mutating func digest(_ bytes: UnsafeRawBufferPointer) {
        checksum = CRC32C.of(bytes, seed: checksum)
        length += bytes.count
    }

    /// Looks for a whole id line within the header section: a report holds our field too, in its body.
    private mutating func search() {
        var headerEnds = false
        let field = Self.field
        let start = kept.withUnsafeBytes { bytes -> Int? in
            var at = 0
            while at < bytes.count, let base = bytes.baseAddress {
                guard let end = memchr(base + at, 0x0a, bytes.count - at) else { return nil }
                let next = UnsafeRawPointer(end) - base + 1
                if next - at <= 2, bytes[at] == 0x0d || bytes[at] == 0x0a {
                    headerEnds = true
                    return nil
                }
                let width = field.count
                if bytes.count - at >= width, bytes[at..<(at + width)].elementsEqual(field) { return at }
                at = next
            }
            return nil
        }
        guard let start else {
            if headerEnds { beginForeign() }
            return
        }
        id = BenchID(field: kept[(start + Self.field.count)...])
        queueID = Self.queueID(in: kept[..<start])
        found = true
        let tail = Array(kept[start...])
        kept.removeAll(keepingCapacity: true)
        tail.withUnsafeBytes { digest($0) }
    }

    private mutating func beginForeign() {
        found = true
        let all = kept
        kept.removeAll(keepingCapacity: false)
        all.withUnsafeBytes { digest($0) }
    }

    /// Id (nil for a foreign message), CRC32C and length from our id field on, or of the whole message without one.
    mutating func finish() -> (id: BenchID?, checksum: UInt32, length: Int) {
        if keepsWhole {
            let all = kept
            search()
            if !found { beginForeign() }
            kept = all
            return (id, checksum, length)
        }
        if !found { beginForeign() }
        return (id, checksum, length)
    }

    /// The `id` clause of the topmost Received field (RFC 5321 4.4), as far as the octets before our field go.
    static func queueID(in head: ArraySlice<UInt8>) -> [UInt8] {
        let mark = Array(" id ".utf8)
        guard head.count > mark.count else { return [] }
        var at = head.startIndex
        while at + mark.count < head.endIndex {
            if head[at..<(at + mark.count)].elementsEqual(mark) {
                let rest = head[(at + mark.count)...]
                let word = rest.prefix { byte in
                    byte > 0x20 && byte != UInt8(ascii: ";") && byte < 0x7f
                }
                if !word.isEmpty { return Array(word.prefix(HistoryRecord.queueIDBound)) }
            }
            at += 1
        }
        return []
    }
}
