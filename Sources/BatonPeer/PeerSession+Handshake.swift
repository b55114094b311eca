// The session's beginning: HELLO, READY, and who the peer is.
import BatonCore
import NIOCore

extension PeerSession {
    mutating func connected(
        _ certified: [NodeID]?, at now: Instant, into actions: inout ActionBuffer<PeerAction>
    ) {
        guard phase == .idle else { return }
        self.certified = certified
        phase = .awaitingHello
        handshakeDue = now + settings.timing.handshake
        if case .dialer(let channel, _) = role { writeNow(ownHello(channel, echo: 0), into: &actions) }
    }

    private func ownHello(_ channel: PeerChannel, echo: UInt64) -> Hello {
        Hello(
            versions: settings.versions, run: settings.run, nonce: nonce, echo: echo, features: settings.features,
            channel: channel, window: settings.window(of: channel), cluster: settings.cluster, name: settings.name)
    }

    mutating func receivedHello(
        _ hello: Hello, into actions: inout ActionBuffer<PeerAction>
    ) throws(PeerViolation) {
        guard let version = settings.versions.common(with: hello.versions) else { throw .versionMismatch }
        guard hello.cluster == settings.cluster else { throw .wrongCluster }
        guard hello.run.node != settings.run.node else { throw .ownNode }
        guard NodeID(value: StableHash.of(hello.name)) == hello.run.node,
            certified?.contains(hello.run.node) ?? true
        else { throw .unexpectedNode }
        let dialer: NodeID
        switch role {
        case .dialer(let channel, let expected):
            guard hello.run.node == expected else { throw .unexpectedNode }
            guard hello.echo == nonce else { throw .staleEcho }
            guard hello.channel == channel else { throw .wrongChannel }
            dialer = settings.run.node
        case .acceptor:
            guard hello.echo == 0 else { throw .staleEcho }
            dialer = hello.run.node
        }
        self.hello = hello
        let identity = PeerIdentity(
            run: hello.run, name: hello.name, channel: hello.channel, dialer: dialer, nonce: hello.nonce,
            version: version, features: settings.features.intersection(hello.features))
        self.identity = identity
        receiveWindow = ReceiveWindow(size: settings.window(of: hello.channel))
        switch role {
        case .dialer:
            phase = .admission
            actions.append(.identify(identity))
        case .acceptor:
            // Nothing is known to be fresh yet: the roster is asked once the dialer has echoed this nonce.
            phase = .awaitingReady
            writeNow(ownHello(hello.channel, echo: hello.nonce), into: &actions)
        }
    }

    mutating func receivedReady(_ ready: Ready, into actions: inout ActionBuffer<PeerAction>) throws(PeerViolation) {
        guard let identity else { throw .unexpected }
        guard ready.echo == nonce else { throw .staleEcho }
        guard ready.version == identity.version else { throw .versionMismatch }
        phase = .admission
        actions.append(.identify(identity))
    }

    mutating func admitted(at now: Instant, into actions: inout ActionBuffer<PeerAction>) {
        guard phase == .admission, let identity, let hello else { return }
        phase = .open
        sendWindow = SendWindow(size: hello.window)
        handshakeDue = .distantFuture
        heartbeat.begin(at: now, every: settings.timing.pingInterval)
        if case .dialer = role { writeNow(Ready(echo: hello.nonce, version: identity.version), into: &actions) }
        actions.append(.opened(identity))
        readFrames(at: now, into: &actions)
    }
}

extension PeerMessage {
    /// What a message says in the name of another run than `sender`'s: a writer appends to its own segments only, an ingress
    /// node submits under its own keys, a copy answers for the run that it is.
    ///
    /// A SUBMIT for a former run of the receiver, or an answer about one, is no breach: whoever gets it refuses or ignores it (S2).
    func violation(from sender: NodeRun) -> PeerViolation? {
        switch self {
        case .create(let create): create.segment.isWritten(by: sender) ? nil : .foreignSegment
        case .append(let append): append.segment.isWritten(by: sender) ? nil : .foreignSegment
        case .submit(let submit): submit.key.ingress == sender ? nil : .foreignKey
        case .created(let created): created.incarnation == sender.incarnation ? nil : .staleIncarnation
        case .durable(let durable): durable.incarnation == sender.incarnation ? nil : .staleIncarnation
        case .recorded(let recorded): recorded.incarnation == sender.incarnation ? nil : .staleIncarnation
        case .sealed(let sealed): sealed.incarnation == sender.incarnation ? nil : .staleIncarnation
        case .hello, .ready, .ping, .pong, .credit, .goodbye, .error, .submitted, .ask, .outcome, .fetch, .chunk, .seal,
            .finished, .unlinked, .promiseAsked, .promise, .quota, .query, .answer:
            nil
        }
    }
}

extension SegmentID {
    fileprivate func isWritten(by run: NodeRun) -> Bool { writer == run.node && incarnation == run.incarnation }
}
