// One command line of a client, from octets to a value (RFC 5321 4.1; no allocation but for the addresses kept).
import BatonCore
import BatonModel

/// A well-formed command.
package enum Command: Equatable, Sendable {
    case ehlo([UInt8])
    case helo([UInt8])
    /// Nil sender is the null reverse-path.
    case mail(MailAddress?, MailParameters)
    /// Nil recipient is the bare `<postmaster>`.
    case rcpt(MailAddress?, RcptParameters)
    case data
    case bdat(size: Int, last: Bool)
    case rset
    case noop
    case vrfy
    case expn
    case help
    case quit
    /// Places kept: answered 502 until TLS and AUTH are there.
    case starttls
    case auth
    /// Known to RFC 5321 or its elders and not served: TURN, SEND, SOML, SAML, ETRN.
    case unimplemented
    /// An HTTP request line: somebody aims a browser at us.
    case http
    case unknown
    /// Known verb, wrong form.
    case malformed(Verb, CommandError)
}

/// Verbs whose malformed forms have answers of their own.
package enum Verb: Equatable, Sendable {
    case greeting
    case mail
    case rcpt
    case bdat
    case other
}

/// Turns a line without its CRLF into a command. Never fails, never reads outside the line. The caller has made sure that the
/// line holds no NUL, CR or LF and is at most `CommandParser.lineOctetsMax` long.
package enum CommandParser {
    typealias Octets = UnsafeRawBufferPointer

    /// Octets of a command line, CRLF included: 512 (RFC 5321 4.5.3.1.4), widened by SIZE, BODY, SMTPUTF8, RET and ENVID on MAIL
    /// and by NOTIFY and ORCPT on RCPT, whose sum stays below this. A longer line is answered 500.
    package static let lineOctetsMax = 2048

    package static func parse(_ line: UnsafeRawBufferPointer) -> Command {
        guard line.count >= 4 else { return .unknown }
        let word = verb(line)
        // A verb ends at a blank or at the end of the line; MAIL and RCPT check for themselves.
        let ended = line.count == 4 || line[4] == 0x20 || line[4] == 0x09
        guard ended else { return long(line) }
        switch word {
        case Word.mail: return mail(line)
        case Word.rcpt: return rcpt(line)
        case Word.data: return plain(line, .data)
        case Word.bdat: return bdat(line)
        case Word.ehlo: return greeting(line, extended: true)
        case Word.helo: return greeting(line, extended: false)
        case Word.rset: return plain(line, .rset)
        case Word.quit: return plain(line, .quit)
        case Word.noop: return .noop
        case Word.vrfy: return argumentNeeded(line, .vrfy)
        case Word.expn: return argumentNeeded(line, .expn)
        case Word.help: return .help
        case Word.auth: return .auth
        case Word.turn, Word.send, Word.soml, Word.saml, Word.etrn: return .unimplemented
        default: return long(line)
        }
    }

    /// The first four octets in upper case as one number.
    @inline(__always)
    private static func verb(_ line: Octets) -> UInt32 {
        let raw =
            UInt32(line[0]) << 24 | UInt32(line[1]) << 16 | UInt32(line[2]) << 8 | UInt32(line[3])
        return raw & 0xdfdf_dfdf
    }

    private enum Word {
        static let ehlo: UInt32 = 0x4548_4c4f
        static let helo: UInt32 = 0x4845_4c4f
        static let mail: UInt32 = 0x4d41_494c
        static let rcpt: UInt32 = 0x5243_5054
        static let data: UInt32 = 0x4441_5441
        static let bdat: UInt32 = 0x4244_4154
        static let rset: UInt32 = 0x5253_4554
        static let noop: UInt32 = 0x4e4f_4f50
        static let vrfy: UInt32 = 0x5652_4659
        static let expn: UInt32 = 0x4558_504e
        static let help: UInt32 = 0x4845_4c50
        static let quit: UInt32 = 0x5155_4954
        static let auth: UInt32 = 0x4155_5448
        static let turn: UInt32 = 0x5455_524e
        static let send: UInt32 = 0x5345_4e44
        static let soml: UInt32 = 0x534f_4d4c
        static let saml: UInt32 = 0x5341_4d4c
        static let etrn: UInt32 = 0x4554_524e
    }

    /// STARTTLS, HTTP verbs, and what nobody knows.
    private static func long(_ line: Octets) -> Command {
        var end = 0
        while end < line.count, line[end] != 0x20, line[end] != 0x09 { end += 1 }
        let word = Octets(rebasing: line[..<end])
        if ParameterParser.matches(word, "STARTTLS") { return .starttls }
        let verbs: [StaticString] = [
            "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE", "PRI",
        ]
        for verb in verbs where ParameterParser.matches(word, verb) { return .http }
        return .unknown
    }

    @inline(__always)
    private static func skipBlanks(_ line: Octets, _ position: inout Int) {
        while position < line.count, line[position] == 0x20 || line[position] == 0x09 { position += 1 }
    }

    /// A command without argument; trailing white space is tolerated (RFC 5321 4.1.1).
    private static func plain(_ line: Octets, _ command: Command) -> Command {
        var position = 4
        skipBlanks(line, &position)
        return position == line.count ? command : .malformed(.other, .argument)
    }

    private static func argumentNeeded(_ line: Octets, _ command: Command) -> Command {
        var position = 4
        skipBlanks(line, &position)
        return position < line.count ? command : .malformed(.other, .argument)
    }

    /// EHLO and HELO: one argument without blanks or controls, at most 255 octets. RFC 5321 4.1.4 forbids refusing mail for a
    /// name that does not resolve, so the form of a domain is not insisted on; a literal has to be one.
    private static func greeting(_ line: Octets, extended: Bool) -> Command {
        var start = 4
        skipBlanks(line, &start)
        var end = start
        while end < line.count, line[end] > 0x20, line[end] != 0x7f { end += 1 }
        var rest = end
        skipBlanks(line, &rest)
        guard end > start, rest == line.count else { return .malformed(.greeting, .argument) }
        guard end - start <= Limits.domainOctets else { return .malformed(.greeting, .tooLong) }
        guard PathParser.isUTF8(line, start, end) else { return .malformed(.greeting, .argument) }
        if line[start] == UInt8(ascii: "[") {
            var position = start
            guard (try? PathParser.skipDomain(line, at: &position)) != nil, position == end else {
                return .malformed(.greeting, .argument)
            }
        }
        let name = Array(line[start..<end])
        return extended ? .ehlo(name) : .helo(name)
    }

    /// Position behind `FROM:` or `TO:` and blanks after it; nil if the word is not there.
    private static func path(_ line: Octets, _ word: StaticString) -> Int? {
        var position = 4
        skipBlanks(line, &position)
        let end = position + word.utf8CodeUnitCount
        guard end <= line.count, ParameterParser.matches(Octets(rebasing: line[position..<end]), word) else {
            return nil
        }
        position = end
        // `MAIL FROM: <a@b>` is wrong by RFC 5321 3.3 and sent by many: accepted in MAIL and RCPT alike.
        skipBlanks(line, &position)
        return position
    }

    private static func mail(_ line: Octets) -> Command {
        guard var position = path(line, "FROM:") else { return .malformed(.mail, .argument) }
        let sender: MailAddress?
        do throws(PathError) {
            switch try PathParser.parse(line, at: &position) {
            case .null: sender = nil
            case .mailbox(let address): sender = address
            case .postmaster: return .malformed(.mail, .path)
            }
        } catch {
            return .malformed(.mail, error == .tooLong ? .tooLong : .path)
        }
        do throws(CommandError) {
            let parameters = try ParameterParser.mail(line, from: position)
            if let sender, !parameters.smtpUTF8, sender.isInternational {
                return .malformed(.mail, .needsSMTPUTF8)
            }
            return .mail(sender, parameters)
        } catch {
            return .malformed(.mail, error)
        }
    }

    private static func rcpt(_ line: Octets) -> Command {
        guard var position = path(line, "TO:") else { return .malformed(.rcpt, .argument) }
        let recipient: MailAddress?
        do throws(PathError) {
            switch try PathParser.parse(line, at: &position) {
            case .null: return .malformed(.rcpt, .path)
            case .mailbox(let address): recipient = address
            case .postmaster: recipient = nil
            }
        } catch {
            return .malformed(.rcpt, error == .tooLong ? .tooLong : .path)
        }
        do throws(CommandError) {
            return .rcpt(recipient, try ParameterParser.rcpt(line, from: position))
        } catch {
            return .malformed(.rcpt, error)
        }
    }

    /// `BDAT size [LAST]` (RFC 3030 2).
    private static func bdat(_ line: Octets) -> Command {
        var position = 4
        skipBlanks(line, &position)
        let start = position
        while position < line.count, line[position] != 0x20, line[position] != 0x09 { position += 1 }
        guard let size = try? ParameterParser.number(Octets(rebasing: line[start..<position])) else {
            return .malformed(.bdat, .argument)
        }
        skipBlanks(line, &position)
        if position == line.count { return .bdat(size: size, last: false) }
        let wordStart = position
        while position < line.count, line[position] != 0x20, line[position] != 0x09 { position += 1 }
        guard ParameterParser.matches(Octets(rebasing: line[wordStart..<position]), "LAST") else {
            return .malformed(.bdat, .argument)
        }
        skipBlanks(line, &position)
        return position == line.count ? .bdat(size: size, last: true) : .malformed(.bdat, .argument)
    }
}
