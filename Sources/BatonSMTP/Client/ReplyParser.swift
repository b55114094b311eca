// Reads SMTP replies (RFC 5321 4.2) from a peer that is not trusted: every length is bounded, and a desynchronised peer is dropped.
import BatonCore
import BatonModel
import Glibc
import NIOCore

/// Why a peer's bytes are no reply. The connection cannot be trusted any more and is dropped.
package enum ReplyViolation: Sendable, Hashable {
    /// A line longer than `ReplyParser.lineOctets` or a reply longer than `ReplyParser.replyOctets`.
    case overlong
    /// No three digits of class 1 to 5, or something else than a blank, a hyphen or the end behind them.
    case malformed
    /// The lines of one reply have codes of different classes.
    case codesDiffer
    /// A NUL octet.
    case nul
}

/// A resumable parser: feed it the buffer again when more has come. It keeps the last reply's text for `reply(stage:)`, in
/// one reused array, so that an accepted command costs no allocation.
///
/// Tolerated because they lead to no wrong verdict: lines that end in a bare LF, differing codes of one class (the last line
/// counts), text of any kind. Text beyond `textOctets` is dropped.
package struct ReplyParser: Sendable {
    /// Octets of a reply line with its end; RFC 5321 4.5.3.1.5 says 512, peers send more.
    package static let lineOctets = 2048
    /// Octets of all lines of one reply.
    package static let replyOctets = 64 * 1024
    /// Octets of text kept of one reply; enough for an EHLO answer of 200 lines.
    package static let textOctets = 8 * 1024

    package enum Step: Sendable, Hashable {
        case needMore
        /// A whole reply was read, with this code.
        case reply(UInt16)
        case violation(ReplyViolation)
    }

    /// The last reply's lines without codes, joined by LF; enhanced codes still there.
    package private(set) var text: [UInt8] = []
    package private(set) var code: UInt16 = 0
    /// Octets of the unfinished line that were searched for its end already.
    private var searched = 0
    private var octets = 0
    private var inReply = false

    package init() {}

    package mutating func next(from buffer: inout ByteBuffer) -> Step {
        while true {
            let from = searched
            let end = buffer.withUnsafeReadableBytes { raw -> Int? in
                guard from < raw.count, let base = raw.baseAddress,
                    let hit = memchr(base + from, 0x0a, raw.count - from)
                else { return nil }
                return UnsafeRawPointer(hit) - base
            }
            guard let end else {
                searched = buffer.readableBytes
                return searched >= Self.lineOctets ? .violation(.overlong) : .needMore
            }
            searched = 0
            octets += end + 1
            guard end < Self.lineOctets, octets <= Self.replyOctets else { return .violation(.overlong) }
            let line = buffer.withUnsafeReadableBytes { take(UnsafeRawBufferPointer(rebasing: $0[..<end])) }
            buffer.moveReaderIndex(forwardBy: end + 1)
            switch line {
            case .continues: continue
            case .last:
                inReply = false
                octets = 0
                return .reply(code)
            case .bad(let violation): return .violation(violation)
            }
        }
    }

    private enum Line {
        case continues
        case last
        case bad(ReplyViolation)
    }

    /// One line without its LF.
    private mutating func take(_ raw: UnsafeRawBufferPointer) -> Line {
        var count = raw.count
        if count > 0, raw[count - 1] == 0x0d { count -= 1 }
        guard count >= 3, let base = raw.baseAddress else { return .bad(.malformed) }
        if memchr(base, 0, count) != nil { return .bad(.nul) }
        var value: UInt16 = 0
        for index in 0..<3 {
            let digit = raw[index]
            guard digit >= 0x30, digit <= 0x39 else { return .bad(.malformed) }
            value = value * 10 + UInt16(digit - 0x30)
        }
        guard value >= 100, value < 600 else { return .bad(.malformed) }
        var last = true
        if count > 3 {
            switch raw[3] {
            case UInt8(ascii: " "): last = true
            case UInt8(ascii: "-"): last = false
            default: return .bad(.malformed)
            }
        }
        if inReply {
            guard value / 100 == code / 100 else { return .bad(.codesDiffer) }
            append(raw, from: 4, to: count, newLine: true)
        } else {
            inReply = true
            text.removeAll(keepingCapacity: true)
            append(raw, from: 4, to: count, newLine: false)
        }
        code = value
        return last ? .last : .continues
    }

    private mutating func append(_ raw: UnsafeRawBufferPointer, from: Int, to: Int, newLine: Bool) {
        let wanted = max(0, to - from) + (newLine ? 1 : 0)
        guard text.count + wanted <= Self.textOctets else { return }
        if newLine { text.append(0x0a) }
        if from < to { text.append(contentsOf: raw[from..<to]) }
    }

    /// The last reply as a value: the enhanced status (RFC 2034) read from its first line and taken off each line that has it.
    package func reply(stage: ReplyStage) -> SMTPReply {
        guard let first = Self.statusAhead(of: text.prefix { $0 != 0x0a }),
            UInt16(first.status.classDigit) == code / 100
        else {
            return SMTPReply(code: code, status: nil, text: text, stage: stage)
        }
        var rest: [UInt8] = []
        rest.reserveCapacity(text.count)
        var begins = true
        for line in text.split(separator: 0x0a, omittingEmptySubsequences: false) {
            if !begins { rest.append(0x0a) }
            begins = false
            if let found = Self.statusAhead(of: line), found.status == first.status {
                rest.append(contentsOf: line.dropFirst(found.length))
            } else {
                rest.append(contentsOf: line)
            }
        }
        return SMTPReply(code: code, status: first.status, text: rest, stage: stage)
    }

    /// The status before the line's first blank, and the octets it takes with that blank.
    private static func statusAhead(of line: ArraySlice<UInt8>) -> (status: EnhancedStatus, length: Int)? {
        let blank = line.firstIndex(of: 0x20) ?? line.endIndex
        guard let found = EnhancedStatus.parse(line[..<blank]) else { return nil }
        return (found.status, min(found.length + (blank < line.endIndex ? 1 : 0), line.count))
    }
}
