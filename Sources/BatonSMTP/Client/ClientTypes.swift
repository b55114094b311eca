// Events, actions and results of the client session.
import BatonCore
import BatonModel
import NIOCore

/// How long each phase waits for the peer (RFC 5321 4.5.3.2; CONTRACT `delivery.timeouts`).
package struct ClientTimeouts: Hashable, Sendable {
    package var banner: TimeSpan = .minutes(5)
    package var command: TimeSpan = .minutes(5)
    package var dataCommand: TimeSpan = .minutes(2)
    /// Between two fragments of a streamed body (RFC 5321 4.5.3.2.5).
    package var data: TimeSpan = .minutes(3)
    package var dot: TimeSpan = .minutes(10)
    package var quit: TimeSpan = .seconds(5)
    /// From the start of a transaction until DATA is accepted; the pool counts connecting into it.
    package var attempt: TimeSpan = .minutes(10)

    package init() {}
}

/// What a session needs to know before it starts.
package struct ClientSettings: Sendable {
    /// The EHLO argument: `node.hostname`.
    package var hostname: [UInt8]
    /// LHLO and a reply per recipient after the dot (RFC 2033).
    package var isLMTP: Bool
    package var timeouts: ClientTimeouts
    /// Bodies from this size on go by BDAT where CHUNKING is offered (octets).
    package var chunkingFrom: Int

    package init(
        hostname: [UInt8], isLMTP: Bool = false, timeouts: ClientTimeouts = ClientTimeouts(),
        chunkingFrom: Int = Limits.fragmentThreshold
    ) {
        self.hostname = hostname
        self.isLMTP = isLMTP
        self.timeouts = timeouts
        self.chunkingFrom = chunkingFrom
    }
}

/// What happened to the connection or was asked of it.
package enum ClientEvent: Sendable {
    case connected
    case received(ByteBuffer)
    /// Only when the session is ready (`isReady`).
    case begin(ClientTransaction)
    /// The fragment asked for by `.wantFragment`.
    case fragment(UInt32, ByteBuffer)
    /// The stored body is damaged: the connection goes before the dot.
    case bodyDamaged
    /// The stored body cannot be read now.
    case bodyUnreadable
    /// The permission to send ended: nothing is sent any more, unless the dot is out already.
    case forbidden
    /// The transport took what was written; asked after every body fragment.
    case writable
    /// Time went on; the shell calls it when `deadline` has passed, late by at most its tick.
    case tick
    /// The transport is gone.
    case closed
    /// No more transactions: QUIT.
    case quit
}

package enum ClientAction: Sendable {
    /// Write in order; flush after the last action of the batch.
    case write(ByteBuffer)
    case wantFragment(UInt32)
    /// The peer took EHLO, LHLO or HELO: transactions may begin.
    case greeted(PeerCapabilities)
    /// The connection never came so far. The session closes.
    case refused(SMTPReply)
    case finished(TransactionEnd)
    /// Close the transport now.
    case close
}

/// How a transaction ended for one recipient, before any policy.
package enum RecipientEnd: Sendable, Hashable {
    /// The peer's answer, its own or the transaction's.
    case reply(SMTPReply)
    /// Not taken in this transaction for a reason that says nothing about the recipient: to be sent in another one, uncounted.
    case again
    /// The connection was lost, or closed by 421, before the final dot. Code 0 where no reply came.
    case lost(SMTPReply)
    /// The connection was lost between the final dot and its reply.
    case inDoubt(SMTPReply)
    case incapable(Incapability)
    case damaged
}

/// The end of a transaction.
package struct TransactionEnd: Sendable {
    /// In the order of `ClientTransaction.recipients`.
    package let ends: [RecipientEnd]
    /// Whether another transaction may begin on this connection.
    package let reusable: Bool
    /// Whether the peer passes DSN requests on (RFC 3461); if not, success reports are ours to send.
    package let peerHasDSN: Bool
    /// The reply to MAIL when it was refused, or the 421 that closed the connection: what site throttling looks at.
    package let trouble: SMTPReply?

    package init(ends: [RecipientEnd], reusable: Bool, peerHasDSN: Bool, trouble: SMTPReply?) {
        self.ends = ends
        self.reusable = reusable
        self.peerHasDSN = peerHasDSN
        self.trouble = trouble
    }
}
