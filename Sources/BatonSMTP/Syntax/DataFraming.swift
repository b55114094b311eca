// The end of data, dot un-stuffing and the verdicts on line ends, in bulk and resumable at any octet (RFC 5321 4.5.2, 2.3.8).
import CBatonSystem

/// What a body may not hold. The first one found decides; the rest of the message is read to its end and dropped.
package enum FramingViolation: Equatable, Sendable {
    case bareCR
    case bareLF
    case nul
}

/// Cuts a stream of DATA or BDAT octets into lines without looking at octets one by one.
///
/// Only CR LF . CR LF ends DATA (the first line of DATA counts as behind a CRLF). Octets whose meaning hangs on the next one (a
/// dot that begins a line, a CR) are held back as a `Place`, never in a buffer, so that any split of the input gives the same
/// output: `splitAtEveryByteGivesTheSameBody` proves it.
///
/// With `normalizesBareLF`, a bare LF becomes CRLF and begins a line, whose leading dot is un-stuffed too, since clients that
/// write bare LF stuff behind it; a lone dot behind a bare LF is text, never the end. Bare CR and NUL stay violations.
package struct DataFraming: Sendable {
    package enum Kind: Sendable {
        /// DATA: dots are un-stuffed, a lone dot ends the body.
        case dotted
        /// BDAT: the count ends the body, octets pass as they are.
        case counted
    }

    /// What the octets so far make of the next one.
    private enum Place: Sendable {
        case lineStart
        case lineStartBehindLF
        /// A dot that began a line is held back.
        case dot
        case dotBehindLF
        /// A dot and a CR are held back.
        case dotCR
        case dotCRBehindLF
        case inLine
        /// A CR is held back.
        case cr
    }

    private let kind: Kind
    private let normalizesBareLF: Bool
    private var place = Place.lineStart
    private var lineOctets = 0
    package private(set) var violation: FramingViolation?
    /// Lines of the output that begin with a dot.
    package private(set) var leadingDots = 0
    /// Octets of the longest line so far without its CRLF, the unfinished one included.
    package private(set) var longestLine = 0
    /// Whether the output ends with CRLF (or is empty).
    package var endsWithCRLF: Bool {
        switch place {
        case .lineStart, .lineStartBehindLF, .dot, .dotBehindLF: true
        case .dotCR, .dotCRBehindLF, .inLine, .cr: false
        }
    }

    package init(_ kind: Kind, normalizesBareLF: Bool) {
        self.kind = kind
        self.normalizesBareLF = normalizesBareLF
    }

    /// Reads octets into `body` up to the end of data or of `raw`. Returns the octets used and whether the data ended.
    package mutating func receive(_ raw: UnsafeRawBufferPointer, into body: inout IncomingBody) -> (
        used: Int, ended: Bool
    ) {
        guard let base = raw.baseAddress?.assumingMemoryBound(to: UInt8.self) else { return (0, false) }
        let count = raw.count
        var index = 0
        // Octets from `run` to `index` are output that has not been handed over yet.
        var run = 0
        while index < count {
            switch place {
            case .lineStart, .lineStartBehindLF:
                let behindLF = place == .lineStartBehindLF
                place = .inLine
                guard base[index] == UInt8(ascii: ".") else { continue }
                if kind == .counted {
                    leadingDots &+= 1
                } else {
                    body.append(raw, run, index)
                    index += 1
                    run = index
                    place = behindLF ? .dotBehindLF : .dot
                }
            case .dot, .dotBehindLF:
                let behindLF = place == .dotBehindLF
                let octet = base[index]
                if octet == 0x0d {
                    index += 1
                    run = index
                    place = behindLF ? .dotCRBehindLF : .dotCR
                } else if octet == 0x0a {
                    // A lone dot before a bare LF is text (or part of a refused message).
                    keepDot(in: &body)
                    place = .inLine
                } else {
                    if octet == UInt8(ascii: ".") { leadingDots &+= 1 }
                    place = .inLine
                }
            case .dotCR:
                if base[index] == 0x0a {
                    // The body itself ended with the line before.
                    endLine(.lineStart)
                    return (index + 1, true)
                }
                violate(.bareCR)
                lineOctets = 2
                place = .inLine
            case .dotCRBehindLF:
                if base[index] == 0x0a {
                    keepDot(in: &body)
                    body.append(Self.crlf)
                    index += 1
                    run = index
                    endLine(.lineStart)
                } else {
                    violate(.bareCR)
                    lineOctets = 2
                    place = .inLine
                }
            case .cr:
                if base[index] == 0x0a {
                    body.append(Self.crlf)
                    index += 1
                    run = index
                    endLine(.lineStart)
                } else {
                    violate(.bareCR)
                    lineOctets &+= 1
                    place = .inLine
                }
            case .inLine:
                let found = index + baton_find_crlf_nul(base + index, count - index)
                lineOctets &+= found - index
                if lineOctets > longestLine { longestLine = lineOctets }
                index = found
                guard found < count else { break }
                switch base[found] {
                case 0x0d:
                    if found + 1 == count {
                        body.append(raw, run, found)
                        index = count
                        run = count
                        place = .cr
                    } else if base[found + 1] == 0x0a {
                        index = found + 2
                        endLine(.lineStart)
                    } else {
                        violate(.bareCR)
                        lineOctets &+= 1
                        index = found + 1
                    }
                case 0x0a:
                    index = found + 1
                    if normalizesBareLF {
                        body.append(raw, run, found)
                        body.append(Self.crlf)
                        run = index
                        endLine(.lineStartBehindLF)
                    } else {
                        violate(.bareLF)
                        lineOctets &+= 1
                    }
                default:
                    violate(.nul)
                    lineOctets &+= 1
                    index = found + 1
                }
            }
        }
        body.append(raw, run, count)
        return (count, false)
    }

    /// The announced octets of the last chunk are in: a CR held back is a bare one.
    package mutating func finish() {
        switch place {
        case .cr, .dotCR, .dotCRBehindLF: violate(.bareCR)
        case .lineStart, .lineStartBehindLF, .dot, .dotBehindLF, .inLine: break
        }
    }

    private static let crlf: StaticString = "\r\n"

    private mutating func keepDot(in body: inout IncomingBody) {
        body.append("." as StaticString)
        leadingDots &+= 1
        lineOctets = 1
        if longestLine == 0 { longestLine = 1 }
    }

    private mutating func endLine(_ next: Place) {
        lineOctets = 0
        place = next
    }

    private mutating func violate(_ found: FramingViolation) {
        if violation == nil { violation = found }
    }
}
