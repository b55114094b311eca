// The session's timer, heartbeat and farewell.
import BatonCore
import NIOCore

/// PINGs of both sides, and when the peer was heard last.
struct Heartbeat: Hashable, Sendable {
    private(set) var lastHeard = Instant.epoch
    private(set) var nextPing = Instant.distantFuture
    /// After a stall of this process: the silence is judged only then.
    private(set) var forgivenUntil: Instant?
    /// Out without their PONG, in order; at most `PeerLimits.pingsUnanswered`.
    private(set) var unanswered: [Beat] = []
    private(set) var roundTrip: TimeSpan?
    private var number: UInt64 = 0
    private var intervalBegan = Instant.epoch
    private var pingsInInterval = 0

    mutating func begin(at now: Instant, every interval: TimeSpan) {
        lastHeard = now
        intervalBegan = now
        nextPing = now + interval
    }

    mutating func heard(at now: Instant) {
        lastHeard = now
        forgivenUntil = nil
    }

    /// A PING that is due, if one may go out.
    mutating func ping(at now: Instant, every interval: TimeSpan) -> Beat? {
        guard now >= nextPing else { return nil }
        nextPing = now + interval
        guard unanswered.count < PeerLimits.pingsUnanswered else { return nil }
        number &+= 1
        let beat = Beat(number: number, at: now)
        unanswered.append(beat)
        return beat
    }

    mutating func answered(_ beat: Beat, at now: Instant) throws(PeerViolation) {
        guard beat == unanswered.first else { throw .unaskedPong }
        unanswered.removeFirst()
        roundTrip = now - beat.at
    }

    /// The peer's PING. Those of a peer that was stopped may come at once, but never more than it can have been silent for.
    mutating func pinged(at now: Instant, every interval: TimeSpan) throws(PeerViolation) {
        if now - intervalBegan >= interval {
            intervalBegan = now
            pingsInInterval = 0
        }
        pingsInInterval += 1
        guard pingsInInterval <= PeerLimits.pingsPerInterval else { throw .tooManyPings }
    }

    func deathDue(after span: TimeSpan) -> Instant { max(lastHeard + span, forgivenUntil ?? .epoch) }

    /// This process was stopped itself: the peer's octets may wait in the transport. Once for each silence.
    mutating func forgive(until instant: Instant) -> Bool {
        guard forgivenUntil == nil else { return false }
        forgivenUntil = instant
        return true
    }
}

/// How far the two sides have said GOODBYE.
struct Farewell: Hashable, Sendable {
    /// To be said when the queue is empty.
    var reason: GoodbyeReason?
    var isSaid = false
    var isHeard = false
    var due = Instant.distantFuture

    var isComplete: Bool { isSaid && isHeard }
}

extension PeerSession {
    // MARK: Timer

    /// Sets the shell's timer where something is due before it. What is put off is looked at when the timer fires.
    mutating func arm(into actions: inout ActionBuffer<PeerAction>) {
        let due =
            switch phase {
            case .idle, .closed: Instant.distantFuture
            case .awaitingHello, .awaitingReady, .admission: handshakeDue
            case .open:
                min(heartbeat.nextPing, heartbeat.deathDue(after: settings.timing.deathAfter), farewell.due)
            }
        guard due < timerDue ?? .distantFuture else { return }
        timerDue = due
        actions.append(.setTimer(due))
    }

    mutating func timerFired(at now: Instant, into actions: inout ActionBuffer<PeerAction>) {
        // A timer that was replaced may still fire.
        let wasLate = timerDue.map { now - $0 > settings.timing.pingInterval } ?? false
        timerDue = nil
        switch phase {
        case .idle, .closed: break
        case .awaitingHello, .awaitingReady, .admission:
            if now >= handshakeDue { fail(.handshakeTimeout, into: &actions) }
        case .open:
            if now >= farewell.due { return end(farewell.isComplete ? .left : .leftAlone, into: &actions) }
            if now >= heartbeat.deathDue(after: settings.timing.deathAfter) {
                guard wasLate, heartbeat.forgive(until: now + settings.timing.pingInterval) else {
                    return fail(.silent, into: &actions)
                }
            }
            if let beat = heartbeat.ping(at: now, every: settings.timing.pingInterval) {
                writeNow(Ping(beat), into: &actions)
            }
        }
    }

    // MARK: Farewell

    mutating func leave(
        _ reason: GoodbyeReason, at now: Instant, into actions: inout ActionBuffer<PeerAction>
    ) {
        guard phase == .open else { return end(.leftAlone, into: &actions) }
        guard farewell.reason == nil else { return }
        farewell.reason = reason
        farewell.due = now + settings.timing.goodbye
        sayGoodbyeIfDue(into: &actions)
    }

    mutating func sayGoodbyeIfDue(into actions: inout ActionBuffer<PeerAction>) {
        guard let reason = farewell.reason, !farewell.isSaid, queue.isEmpty else { return }
        farewell.isSaid = true
        writeNow(Goodbye(reason), into: &actions)
    }

    /// The first to have said it closes now; the second waits for that, so that its own GOODBYE is read before the end.
    mutating func receivedGoodbye(
        _ goodbye: Goodbye, at now: Instant, into actions: inout ActionBuffer<PeerAction>
    ) throws(PeerViolation) {
        guard !farewell.isHeard else { throw .unexpected }
        farewell.isHeard = true
        actions.append(.peerLeaves(goodbye.reason))
        guard !farewell.isSaid else { return end(.left, into: &actions) }
        guard farewell.reason == nil else { return }
        farewell.reason = goodbye.reason
        farewell.due = now + settings.timing.goodbye
        sayGoodbyeIfDue(into: &actions)
    }
}
