// Transports on loopback, a delegate that remembers, and waiting with a bound.
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import Foundation
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonCluster

/// The loops of all transports of this test run: one for control, one for bulk.
enum TestLoops {
    static let group = MultiThreadedEventLoopGroup(numberOfThreads: 2)
    static let control = group.next()
    static let bulk = group.next()
}

/// Looks until `condition` holds; false after `seconds`.
func eventually(_ seconds: Double = 20, _ condition: () -> Bool) async -> Bool {
    let end = ContinuousClock.now.advanced(by: .seconds(seconds))
    while ContinuousClock.now < end {
        if condition() { return true }
        try? await Task.sleep(for: .milliseconds(2))
    }
    return condition()
}

/// Remembers what it was told, and releases at once unless told not to.
final class Recorder: PeerTransportDelegate {
    enum Event: Hashable, Sendable {
        case connected(NodeRun, PeerChannel)
        case disconnected(NodeRun, PeerChannel)
    }

    struct State {
        var messages: [PeerMessage] = []
        var batches: [Int] = []
        var held: [ReceivedFrame] = []
        var events: [Event] = []
        var reasons: [CloseReason] = []
        var unsent: [(PeerMessage, SendRefusal)] = []
        var leaving: [GoodbyeReason] = []
        var loops: [PeerChannel: Set<ObjectIdentifier>] = [:]
        var strangers = 0
        var open: Set<UInt64> = []
        var releases = true
    }

    let state = Mutex(State())
    let transport = Mutex<PeerTransport?>(nil)

    private func note(_ identity: PeerIdentity, _ body: (inout State) -> Void) {
        state.withLock { state in
            for (loop, isIn) in [TestLoops.control, TestLoops.bulk].map({ (ObjectIdentifier($0), $0.inEventLoop) })
            where isIn {
                state.loops[identity.channel, default: []].insert(loop)
            }
            body(&state)
        }
    }

    func connected(_ identity: PeerIdentity) {
        note(identity) { $0.events.append(.connected(identity.run, identity.channel)) }
    }

    func received(_ frames: [ReceivedFrame], from identity: PeerIdentity) {
        var released: [ReceivedFrame] = []
        note(identity) { state in
            state.messages += frames.map(\.message)
            state.batches.append(frames.count)
            let owed = frames.filter(\.isReleasedByConsumer)
            if state.releases { released = owed } else { state.held += owed }
        }
        give(back: released)
    }

    func leaves(_ identity: PeerIdentity, _ reason: GoodbyeReason) { note(identity) { $0.leaving.append(reason) } }

    func disconnected(_ identity: PeerIdentity, _ reason: CloseReason) {
        note(identity) { state in
            state.events.append(.disconnected(identity.run, identity.channel))
            state.reasons.append(reason)
        }
    }

    func notSent(_ messages: [PeerMessage], to identity: PeerIdentity, _ reason: SendRefusal) {
        note(identity) { $0.unsent += messages.map { ($0, reason) } }
    }

    func give(back frames: [ReceivedFrame]) {
        let transport = transport.withLock { $0 }
        for frame in frames { transport?.release(frame.cost, of: frame.session) }
    }

    /// From now on, and what is held.
    func release() {
        let held = state.withLock { state in
            defer { state.held = [] }
            state.releases = true
            return state.held
        }
        give(back: held)
    }

    var messages: [PeerMessage] { state.withLock { $0.messages } }
    var events: [Event] { state.withLock { $0.events } }
    func count(_ event: Event) -> Int { events.count { $0 == event } }
}

/// A node's transport with its delegate.
struct TestNode {
    let transport: PeerTransport
    let recorder = Recorder()
    let settings: PeerSettings
    let name: String
    let address: PeerAddress

    static func settings(
        _ name: String, cluster: String = "prod", incarnation: UInt64 = 1,
        _ change: (inout PeerSettings) -> Void = { _ in }
    ) -> PeerSettings {
        var settings = PeerSettings(
            name: Array(name.utf8), cluster: Array(cluster.utf8), incarnation: Incarnation(value: incarnation))
        settings.features = .lz4
        change(&settings)
        return settings
    }

    init(
        _ settings: PeerSettings, security: PeerSecurity = .plaintext, address: String = "127.0.0.1:0"
    ) async throws {
        try await self.init(
            PeerTransportConfiguration(
                address: try #require(PeerAddress(address)), settings: settings, security: security))
    }

    init(_ configuration: PeerTransportConfiguration) async throws {
        self.settings = configuration.settings
        self.name = String(decoding: settings.name, as: UTF8.self)
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        self.transport = PeerTransport(
            configuration: configuration, controlLoop: TestLoops.control, bulkLoop: TestLoops.bulk,
            time: SystemTimeSource(), logger: logger)
        let transport = self.transport
        recorder.transport.withLock { $0 = transport }
        self.address = try await transport.start(delegate: recorder)
    }

    var node: NodeID { settings.run.node }
    var run: NodeRun { settings.run }

    func endpoint(revision: UInt64 = 1) -> PeerEndpoint {
        PeerEndpoint(name: name, incarnation: settings.run.incarnation, address: address, revision: revision)
    }

    func isConnected(to other: TestNode) -> Bool {
        PeerChannel.allCases.allSatisfy { transport.isConnected(to: other.node, $0) }
    }

    func stop() async {
        await transport.stop()
        recorder.transport.withLock { $0 = nil }
    }
}

/// Two nodes that know each other, once both channels stand.
func connectedPair(
    _ first: PeerSettings = TestNode.settings("n1"), _ second: PeerSettings = TestNode.settings("n2"),
    security: (PeerSecurity, PeerSecurity) = (.plaintext, .plaintext)
) async throws -> (TestNode, TestNode) {
    let one = try await TestNode(first, security: security.0)
    let two = try await TestNode(second, security: security.1)
    one.transport.peers([one.endpoint(), two.endpoint()])
    two.transport.peers([one.endpoint(), two.endpoint()])
    try #require(await eventually { one.isConnected(to: two) && two.isConnected(to: one) })
    return (one, two)
}

/// A node "n2" for the time of `body`, which may block.
func withNode(
    _ change: (inout PeerSettings) -> Void = { _ in }, security: PeerSecurity = .plaintext,
    _ body: (TestNode) throws -> Void
) async throws {
    let node = try await TestNode(TestNode.settings("n2", change), security: security)
    let result = Result { try body(node) }
    await node.stop()
    try result.get()
}
