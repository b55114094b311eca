// A peer on a blocking socket: a session of its own, octets as a test wants them, with and without TLS.
import BatonCore
import BatonPeer
import BatonRuntime
import BatonTLS
import Glibc
import NIOCore
import Testing

@testable import BatonCluster

/// Connects to a transport and says what it is told. Each wait ends after 10 s. Used by one test at a time.
final class RawPeer {
    private let descriptor: Int32
    private let tls: TLSConnection?
    private var session: PeerSession?
    private let clock = SystemTimeSource()
    private(set) var isAtEnd = false
    private(set) var tlsFailure: TLSFailure?
    private(set) var delivered: [PeerMessage] = []
    private(set) var opened: PeerIdentity?
    private(set) var closed: CloseReason?
    private(set) var written: [UInt8] = []
    private(set) var read = ByteBuffer()
    private(set) var sendsRefused = 0
    /// Octets of one write.
    var piece = Int.max
    var answersTimers = true

    /// `settings` nil: no session, only octets.
    init(
        _ address: PeerAddress, settings: PeerSettings? = nil, channel: PeerChannel = .bulk, expecting: NodeID? = nil,
        nonce: UInt64 = 0xd1a1, tls: (TLSContext, name: String)? = nil, receiveBuffer: Int32? = nil
    ) throws {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        self.descriptor = descriptor
        var one: Int32 = 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
        if var receiveBuffer {
            setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &receiveBuffer, socklen_t(MemoryLayout<Int32>.size))
        }
        var place = sockaddr_in()
        place.sin_family = sa_family_t(AF_INET)
        place.sin_port = in_port_t(UInt16(address.port)).bigEndian
        place.sin_addr.s_addr = inet_addr("127.0.0.1")
        let result = withUnsafePointer(to: &place) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        self.tls = try tls.map { try #require(TLSConnection($0.0, .client(name: Array($0.name.utf8)))) }
        if let settings {
            let role = PeerRole.dialer(channel, expecting: expecting ?? NodeID(name: "n2"))
            self.session = PeerSession(settings: settings, role: role, nonce: nonce)
        }
        guard result == 0 else { throw NotConnected() }
    }

    deinit { close(descriptor) }

    func end() { shutdown(descriptor, Int32(SHUT_WR)) }

    struct NotConnected: Error {}

    // MARK: Out

    func write(raw octets: [UInt8]) {
        var rest = octets[...]
        while !rest.isEmpty {
            let part = Array(rest.prefix(piece))
            let count = Glibc.send(descriptor, part, part.count, Int32(MSG_NOSIGNAL))
            guard count > 0 else { return }
            rest = rest.dropFirst(count)
        }
    }

    private func write(_ octets: ByteBuffer) {
        written += octets.readableBytesView
        guard let tls else { return write(raw: Array(octets.readableBytesView)) }
        var plain = octets
        while plain.readableBytes > 0, (try? tls.write(&plain)) != nil { flush() }
    }

    private func flush() {
        if let records = tls?.takeOutput() { write(raw: Array(records.readableBytesView)) }
    }

    func send(_ message: PeerMessage) { feed(.send(message)) }

    /// Octets behind the session's back.
    func write(frame octets: ByteBuffer) { write(octets) }

    // MARK: In

    /// Begins and goes on until `condition` holds or 10 s are over.
    @discardableResult
    func run(until condition: (RawPeer) -> Bool) throws -> Bool {
        if tls != nil { advance() } else { begin() }
        let end = ContinuousClock.now.advanced(by: .seconds(10))
        while ContinuousClock.now < end {
            if condition(self) { return true }
            if isAtEnd { return condition(self) }
            readSome()
        }
        return condition(self)
    }

    private var hasBegun = false

    private func begin() {
        guard !hasBegun else { return }
        hasBegun = true
        feed(.connected(certified: nil))
    }

    private func readSome() {
        var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&poller, 1, 20) > 0 else { return }
        var octets = [UInt8](repeating: 0, count: 65_536)
        let count = recv(descriptor, &octets, octets.count, 0)
        guard count > 0 else {
            isAtEnd = true
            feed(.closed)
            return
        }
        let buffer = ByteBuffer(bytes: octets.prefix(count))
        guard let tls else { return take(buffer) }
        do throws(TLSFailure) { try tls.feed(buffer) } catch { tlsFailure = error }
        advance()
    }

    private func advance() {
        guard let tls, tlsFailure == nil else { return }
        do throws(TLSFailure) {
            let isDone = try tls.handshake()
            flush()
            guard isDone else { return }
            begin()
            var plain = ByteBuffer()
            try tls.read(into: &plain)
            take(plain)
        } catch {
            tlsFailure = error
            flush()
        }
    }

    private func take(_ octets: ByteBuffer) {
        guard octets.readableBytes > 0 else { return }
        read.writeImmutableBuffer(octets)
        feed(.received(octets))
    }

    private func feed(_ event: PeerEvent) {
        var events = [event]
        while !events.isEmpty {
            var actions = ActionBuffer<PeerAction>()
            let event = events.removeFirst()
            session?.receive(event, at: clock.now(), into: &actions)
            for action in actions.drain() {
                switch action {
                case .write(let octets): write(octets)
                case .deliver(let message, _): delivered.append(message)
                case .identify: events.append(.admitted)
                case .opened(let identity): opened = identity
                case .close(let reason): closed = reason
                case .sendRefused: sendsRefused += 1
                case .peerLeaves, .setTimer: break
                }
            }
        }
    }

    /// The code of the ERROR that came first, of a peer that had nothing to say but that and HELLO.
    var errorCode: PeerViolation? {
        if case .error(let code, _) = closed { return PeerViolation(rawValue: code) }
        var decoder = FrameDecoder()
        decoder.feed(read)
        while let step = try? decoder.next() {
            switch step {
            case .needMore: return nil
            case .header: continue
            case .frame(let frame):
                if case .error(let report)? = try? PeerMessage(reading: frame) {
                    return PeerViolation(rawValue: report.code)
                }
            }
        }
        return nil
    }
}
