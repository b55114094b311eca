// The replies of the server side: constant lines, one place (RFC 5321 4.2, RFC 2034, RFC 5248).
import BatonModel
import NIOCore

/// One line of reply without its CRLF: code, enhanced status, text.
package struct ServerReply: Sendable {
    package let line: StaticString

    package init(_ line: StaticString) {
        self.line = line
    }

    /// First digit of the code: 2, 3, 4 or 5.
    package var classDigit: UInt8 { line.utf8CodeUnitCount > 0 ? line.utf8Start[0] &- 0x30 : 0 }

    /// The reply as events keep it.
    package func asReply(stage: ReplyStage) -> SMTPReply {
        let octets = line.withUTF8Buffer { Array($0) }
        let code = octets.prefix(3).reduce(UInt16(0)) { $0 &* 10 &+ UInt16($1 &- 0x30) }
        let rest = octets.dropFirst(4)
        guard let (status, used) = EnhancedStatus.parse(rest) else {
            return SMTPReply(code: code, status: nil, text: Array(rest), stage: stage)
        }
        return SMTPReply(code: code, status: status, text: Array(rest.dropFirst(used)), stage: stage)
    }

    @inline(__always)
    func write(into buffer: inout ByteBuffer) {
        buffer.writeStaticString(line)
        buffer.writeStaticString("\r\n")
    }
}

extension ServerReply {
    // Success.
    static let ok = ServerReply("250 2.0.0 Ok")
    static let senderOk = ServerReply("250 2.1.0 Ok")
    static let recipientOk = ServerReply("250 2.1.5 Ok")
    static let startData = ServerReply("354 End data with <CR><LF>.<CR><LF>")
    static let bye = ServerReply("221 2.0.0 Bye")
    static let cannotVerify = ServerReply("252 2.5.0 Cannot verify, but will take mail for permitted senders and try")
    static let help = ServerReply("214 2.0.0 EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT")

    // The connection ends.
    package static let shuttingDown = ServerReply("421 4.3.2 Service shutting down, try again later")
    package static let tooManyConnections = ServerReply("421 4.3.2 Too many connections, try again later")
    package static let tooManyFromClient = ServerReply("421 4.7.0 Too many connections from your network")
    static let timedOut = ServerReply("421 4.4.2 Timeout exceeded")
    static let tooManyErrors = ServerReply("421 4.7.0 Too many errors")
    static let tooManyCommands = ServerReply("421 4.7.0 Too many commands without a message")
    static let tooManyMessages = ServerReply("421 4.7.0 Too many messages in one connection, connect again")
    static let beforeGreeting = ServerReply("554 5.5.1 You sent before the greeting")
    static let unsynchronised = ServerReply("554 5.5.0 Commands pipelined where they may not be (RFC 2920)")
    static let badOctet = ServerReply("500 5.5.2 NUL, bare CR or bare LF in a command")
    static let http = ServerReply("554 5.5.1 This is not a web server")

    // Temporary.
    package static let diskFull = ServerReply("452 4.3.1 Insufficient storage, try again later")
    package static let memoryFull = ServerReply("452 4.3.1 Insufficient memory, try again later")
    static let tooManyRecipients = ServerReply("452 4.5.3 Too many recipients in one transaction")
    package static let noCopies = ServerReply("451 4.3.0 Not enough copies can be made now, try again later")
    package static let storageFailed = ServerReply("451 4.3.0 Message not stored, try again later")
    package static let overloaded = ServerReply("451 4.3.2 System overloaded, try again later")

    // Permanent.
    static let unknownCommand = ServerReply("500 5.5.2 Command not recognized")
    static let lineTooLong = ServerReply("500 5.5.2 Command line too long")
    static let notImplemented = ServerReply("502 5.5.1 Command not implemented")
    static let badArgument = ServerReply("501 5.5.4 Syntax error in parameters or arguments")
    static let argumentTooLong = ServerReply("501 5.5.4 Argument too long")
    static let badSender = ServerReply("501 5.1.7 Bad sender address syntax")
    static let badRecipient = ServerReply("501 5.1.3 Bad recipient address syntax")
    static let unknownParameter = ServerReply("555 5.5.4 Parameter not recognized")
    static let needsSMTPUTF8 = ServerReply("553 5.6.7 Address needs SMTPUTF8")
    static let helloFirst = ServerReply("503 5.5.1 EHLO or HELO first")
    static let nestedMail = ServerReply("503 5.5.1 Transaction already open")
    static let mailFirst = ServerReply("503 5.5.1 MAIL first")
    static let recipientFirst = ServerReply("503 5.5.1 RCPT first")
    static let noValidRecipients = ServerReply("554 5.5.1 No valid recipients")
    static let chunksOpen = ServerReply("503 5.5.1 Only BDAT or RSET may follow BDAT")
    static let relayDenied = ServerReply("554 5.7.1 Relay access denied")
    static let tooBig = ServerReply("552 5.3.4 Message too big")
    static let headerTooLong = ServerReply("552 5.3.4 Header section too long")
    static let bareCR = ServerReply("550 5.5.2 Bare CR in the message")
    static let bareLF = ServerReply("550 5.5.2 Bare LF in the message")
    static let nulInData = ServerReply("550 5.5.2 NUL in the message")
    static let dataLineTooLong = ServerReply("550 5.5.2 Line too long in the message")
    static let tooManyHops = ServerReply("554 5.4.6 Too many hops, mail loop suspected")
}

/// Why a body cannot be accepted; the first reason stands.
package enum BodyFailure: Equatable, Sendable {
    case framing(FramingViolation)
    case lineTooLong
    case tooBig
    case headerTooLong
    case tooManyHops
    case memory
    case storage(SubmissionRefusal)

    var reply: ServerReply {
        switch self {
        case .framing(.bareCR): .bareCR
        case .framing(.bareLF): .bareLF
        case .framing(.nul): .nulInData
        case .lineTooLong: .dataLineTooLong
        case .tooBig: .tooBig
        case .headerTooLong: .headerTooLong
        case .tooManyHops: .tooManyHops
        case .memory: .memoryFull
        case .storage(let refusal): .refusal(refusal)
        }
    }
}

extension ServerReply {
    /// Any doubt about storage is temporary (DESIGN promise 1): 451, 452 or 421, never 5xx and never 250.
    package static func refusal(_ refusal: SubmissionRefusal) -> ServerReply {
        switch refusal {
        case .diskFull: .diskFull
        case .noCopies: .noCopies
        case .storageFailed: .storageFailed
        case .overloaded: .overloaded
        case .stopping: .shuttingDown
        }
    }
}
