// Every frame as a value, and the way from bytes to values and back.
import BatonCore
import NIOCore

/// What one frame says.
package enum PeerMessage: Hashable, Sendable {
    case hello(Hello)
    case ready(Ready)
    case ping(Ping)
    case pong(Pong)
    case credit(Credit)
    case goodbye(Goodbye)
    case error(ErrorReport)
    case submit(Submit)
    case submitted(Submitted)
    case ask(Ask)
    case create(Create)
    case created(Created)
    case append(Append)
    case durable(Durable)
    case outcome(OutcomeRecords)
    case recorded(Recorded)
    case fetch(Fetch)
    case chunk(CopyPart)
    case seal(Seal)
    case sealed(Sealed)
    case finished(Finished)
    case unlinked(Unlinked)
    case promiseAsked(PromiseAsked)
    case promise(Promise)
    case quota(Quota)
    case query(Query)
    case answer(Answer)

    package var type: FrameType {
        switch self {
        case .hello: .hello
        case .ready: .ready
        case .ping: .ping
        case .pong: .pong
        case .credit: .credit
        case .goodbye: .goodbye
        case .error: .error
        case .submit: .submit
        case .submitted: .submitted
        case .ask: .ask
        case .create: .create
        case .created: .created
        case .append: .append
        case .durable: .durable
        case .outcome: .outcome
        case .recorded: .recorded
        case .fetch: .fetch
        case .chunk: .chunk
        case .seal: .seal
        case .sealed: .sealed
        case .finished: .finished
        case .unlinked: .unlinked
        case .promiseAsked: .promiseAsked
        case .promise: .promise
        case .quota: .quota
        case .query: .query
        case .answer: .answer
        }
    }

    /// Reads a frame's payload. Its octets are referred to, not copied.
    package init(reading frame: Frame) throws(PeerViolation) {
        var rest = frame.payload
        let flags = frame.flags
        switch frame.type {
        case .hello:
            guard Hello.hasMagic(rest) else { throw .notBaton }
            self = .hello(try Self.read(&rest, flags))
        case .ready: self = .ready(try Self.read(&rest, flags))
        case .ping: self = .ping(try Self.read(&rest, flags))
        case .pong: self = .pong(try Self.read(&rest, flags))
        case .credit: self = .credit(try Self.read(&rest, flags))
        case .goodbye: self = .goodbye(try Self.read(&rest, flags))
        case .error: self = .error(try Self.read(&rest, flags))
        case .submit: self = .submit(try Self.read(&rest, flags))
        case .submitted: self = .submitted(try Self.read(&rest, flags))
        case .ask: self = .ask(try Self.read(&rest, flags))
        case .create: self = .create(try Self.read(&rest, flags))
        case .created: self = .created(try Self.read(&rest, flags))
        case .append: self = .append(try Self.read(&rest, flags))
        case .durable: self = .durable(try Self.read(&rest, flags))
        case .outcome: self = .outcome(try Self.read(&rest, flags))
        case .recorded: self = .recorded(try Self.read(&rest, flags))
        case .fetch: self = .fetch(try Self.read(&rest, flags))
        case .chunk: self = .chunk(try Self.read(&rest, flags))
        case .seal: self = .seal(try Self.read(&rest, flags))
        case .sealed: self = .sealed(try Self.read(&rest, flags))
        case .finished: self = .finished(try Self.read(&rest, flags))
        case .unlinked: self = .unlinked(try Self.read(&rest, flags))
        case .promiseAsked: self = .promiseAsked(try Self.read(&rest, flags))
        case .promise: self = .promise(try Self.read(&rest, flags))
        case .quota: self = .quota(try Self.read(&rest, flags))
        case .query: self = .query(try Self.read(&rest, flags))
        case .answer: self = .answer(try Self.read(&rest, flags))
        }
    }

    private static func read<Payload: FramePayload>(
        _ rest: inout ByteBuffer, _ flags: FrameFlags
    ) throws(PeerViolation) -> Payload {
        guard let payload = Payload(reading: &rest, flags: flags), rest.readableBytes == 0, payload.isValid else {
            throw .malformed
        }
        return payload
    }
}
