// The side of an open session that any thread may use: messages in, credit back, one loop crossing per batch.
import BatonCore
import BatonPeer
import BatonSpool
import NIOCore
import Synchronization

/// Bounded by `PeerSettings.queue` together with what waits for credit in the session, so that what was taken always fits.
final class PeerLink: Sendable {
    struct Batch {
        var messages: [PeerMessage] = []
        var released = FrameCost.zero
    }

    private struct State {
        var batch = Batch()
        /// Of `batch.messages`, of what is reserved for some to come, and of what the loop took and has not counted yet.
        var waiting = FrameCost.zero
        var taken = FrameCost.zero
        /// What waits in the session for credit, as the loop saw it last.
        var queued = FrameCost.zero
        var wakePending = false
        var isOpen = true
        var compression = CompressionPolicy(.auto)

        mutating func wake() -> Bool {
            defer { wakePending = true }
            return !wakePending
        }
    }

    let id: PeerSessionID
    let identity: PeerIdentity
    private let limit: FrameCost
    /// What the peer may have under way here.
    private let window: FrameCost
    private let loop: any EventLoop
    private let handler: NIOLoopBound<PeerHandler>
    private let state = Mutex(State())

    /// On the handler's loop.
    init(
        id: PeerSessionID, identity: PeerIdentity, limit: FrameCost, window: FrameCost, loop: any EventLoop,
        handler: PeerHandler
    ) {
        self.id = id
        self.identity = identity
        self.limit = limit
        self.window = window
        self.loop = loop
        self.handler = NIOLoopBound(handler, eventLoop: loop)
    }

    // MARK: Any thread

    /// Holds room for messages of this cost; false while there is none.
    func reserve(_ cost: FrameCost) -> Bool {
        state.withLock { state in
            let octets = state.waiting.octets + state.taken.octets + state.queued.octets
            let frames = state.waiting.frames + state.taken.frames + state.queued.frames
            guard state.isOpen, cost.octets <= limit.octets - octets, cost.frames <= limit.frames - frames else {
                return false
            }
            state.waiting.octets += cost.octets
            state.waiting.frames += cost.frames
            return true
        }
    }

    func giveUp(_ cost: FrameCost) {
        state.withLock { state in
            state.waiting.octets -= cost.octets
            state.waiting.frames -= cost.frames
        }
    }

    /// Sends messages for which there is room reserved.
    func send(_ messages: [PeerMessage]) {
        let wakes = state.withLock { state in
            guard state.isOpen else { return false }
            state.batch.messages.append(contentsOf: messages)
            return state.wake()
        }
        if wakes { wakeLoop() }
    }

    /// Credit goes back with whatever the loop does next here; alone it wakes the loop only when it has become a good part of the
    /// window, which keeps more than half of it open to the peer (docs/PEER_PROTOCOL.md, "Credit").
    func release(_ cost: FrameCost) {
        let wakes = state.withLock { state in
            guard state.isOpen else { return false }
            state.batch.released.octets += cost.octets
            state.batch.released.frames += cost.frames
            let released = state.batch.released
            guard
                released.octets >= window.octets / (2 * PeerLimits.creditPortions)
                    || released.frames >= window.frames / (2 * PeerLimits.creditPortions)
            else { return false }
            return state.wake()
        }
        if wakes { wakeLoop() }
    }

    /// Whether to try LZ4 on a body of this length.
    func wantsCompression(length: Int) -> Bool {
        identity.features.contains(.lz4) && state.withLock { $0.compression.wants(length: length) }
    }

    func compressed(raw: Int, stored: Int) {
        state.withLock { $0.compression.observed(raw: raw, stored: stored) }
    }

    private func wakeLoop() {
        loop.execute { self.handler.value.drain() }
    }

    // MARK: The loop

    /// Credit that no wake was spent on.
    func takeReleased() -> FrameCost {
        state.withLock { state in
            defer { state.batch.released = .zero }
            return state.batch.released
        }
    }

    func take() -> Batch {
        state.withLock { state in
            var batch = Batch()
            swap(&batch, &state.batch)
            state.wakePending = false
            // Room that is reserved and not used yet stays counted with what was taken, until its messages come.
            for message in batch.messages {
                let cost = message.weight
                state.waiting.octets -= cost.octets
                state.waiting.frames -= cost.frames
                state.taken.octets += cost.octets
                state.taken.frames += cost.frames
            }
            return batch
        }
    }

    /// What was taken is in the session's queue now, or out.
    func queued(_ cost: FrameCost) {
        state.withLock { state in
            state.taken = .zero
            state.queued = cost
        }
    }

    func close() {
        state.withLock { state in
            state.isOpen = false
            state.batch = Batch()
        }
    }
}
