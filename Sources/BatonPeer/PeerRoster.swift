// Who is connected: one session per pair of runs and channel, and no run that was superseded.
import BatonCore

/// This process's name for one of its sessions; never reused.
package struct PeerSessionID: Hashable, Sendable {
    package let value: UInt64

    package init(value: UInt64) {
        self.value = value
    }
}

package enum Admission: Hashable, Sendable {
    /// The session may open, and these end (`.replaced`).
    case admitted(replacing: [PeerSessionID])
    case refused(PeerViolation)
}

/// Decides which of several connections stays, the same on both sides, and which run of a node is the present one.
///
/// Pure and shared by the sessions of a process: whoever holds it guards it (a Mutex; the calls are short). Incarnations are random
/// and have no order (PROTOCOL A5), so the present one is the one that the control plane names, else the one that was connected
/// last, and a run whose sessions live is displaced by the control plane's word only. What it knows is bounded by
/// `PeerLimits.nodes`, `formerIncarnations` and `handshakes`, and is gone with the process: a run that was superseded before
/// that has no peer any more that would let it in where it matters, for segments are fenced by seals and not by sessions.
package struct PeerRoster: Sendable {
    private struct Entry {
        let id: PeerSessionID
        let dialer: NodeID
        let nonce: UInt64
    }

    private struct Known {
        var present: Incarnation?
        /// Of the node's key in the control plane, when it last spoke; 0: never.
        var revision: UInt64 = 0
        /// Oldest first.
        var former: [Incarnation] = []
        var sessions: [PeerChannel: Entry] = [:]
        /// Of the last change, so that the node without sessions that changed longest ago is forgotten first.
        var stamp: UInt64 = 0

        /// Makes `run` the present one. Returns the sessions that end, in a fixed order.
        mutating func turn(to run: Incarnation) -> [PeerSessionID] {
            former.removeAll { $0 == run }
            guard present != run else { return [] }
            if let old = present {
                former.append(old)
                if former.count > PeerLimits.formerIncarnations { former.removeFirst() }
            }
            present = run
            let ended = PeerChannel.allCases.compactMap { sessions[$0]?.id }
            sessions = [:]
            return ended
        }
    }

    private let me: NodeID
    private var handshakes: Set<PeerSessionID> = []
    private var nodes: [NodeID: Known] = [:]
    private var places: [PeerSessionID: (node: NodeID, channel: PeerChannel)] = [:]
    private var lastID: UInt64 = 0
    private var stamp: UInt64 = 0

    package init(me: NodeID) {
        self.me = me
    }

    /// A connection was dialed or accepted. Nil while too many are in their handshake: it is closed at once.
    package mutating func begin() -> PeerSessionID? {
        guard handshakes.count < PeerLimits.handshakes else { return nil }
        lastID += 1
        let id = PeerSessionID(value: lastID)
        handshakes.insert(id)
        return id
    }

    /// The answer to a session's `.identify`.
    package mutating func admit(_ id: PeerSessionID, _ identity: PeerIdentity) -> Admission {
        guard handshakes.contains(id) else { return .refused(.unexpected) }
        let node = identity.run.node
        guard node != me else { return .refused(.ownNode) }
        guard makeRoom(for: node) else { return .refused(.tooManySessions) }
        var known = nodes[node] ?? Known()
        guard !known.former.contains(identity.run.incarnation) else { return .refused(.staleIncarnation) }
        if let present = known.present, present != identity.run.incarnation, !known.sessions.isEmpty {
            return .refused(.duplicateSession)
        }
        var replaced: [PeerSessionID] = []
        if let old = known.sessions[identity.channel] {
            let preferred = me.value < node.value ? me : node
            let isRedialed = old.dialer == identity.dialer
            guard old.nonce != identity.nonce, isRedialed || identity.dialer == preferred else {
                return .refused(.duplicateSession)
            }
            replaced.append(old.id)
        }
        replaced += known.turn(to: identity.run.incarnation)
        known.sessions[identity.channel] = Entry(id: id, dialer: identity.dialer, nonce: identity.nonce)
        save(known, node)
        for old in replaced { places[old] = nil }
        places[id] = (node, identity.channel)
        handshakes.remove(id)
        return .admitted(replacing: replaced)
    }

    /// A session is over, whatever became of it.
    package mutating func ended(_ id: PeerSessionID) {
        handshakes.remove(id)
        // A session that was replaced has lost its place already.
        guard let (node, channel) = places.removeValue(forKey: id), var known = nodes[node] else { return }
        known.sessions[channel] = nil
        save(known, node)
    }

    /// The control plane names a node's present run, at the revision of its key. An older word than one that was heard counts
    /// for nothing; a newer one counts more than any session, and lets a run back in that was taken for superseded.
    /// Returns the sessions that end (`.replaced`).
    package mutating func registered(_ run: NodeRun, revision: UInt64) -> [PeerSessionID] {
        guard run.node != me, makeRoom(for: run.node) else { return [] }
        var known = nodes[run.node] ?? Known()
        guard revision >= known.revision else { return [] }
        known.revision = revision
        let ended = known.turn(to: run.incarnation)
        save(known, run.node)
        for id in ended { places[id] = nil }
        return ended
    }

    /// An operator has declared a node lost. Returns the sessions that end.
    package mutating func forget(_ node: NodeID) -> [PeerSessionID] {
        guard let known = nodes.removeValue(forKey: node) else { return [] }
        let ended = PeerChannel.allCases.compactMap { known.sessions[$0]?.id }
        for id in ended { places[id] = nil }
        return ended
    }

    package func session(to node: NodeID, _ channel: PeerChannel) -> PeerSessionID? {
        nodes[node]?.sessions[channel]?.id
    }

    package func incarnation(of node: NodeID) -> Incarnation? { nodes[node]?.present }

    /// Sessions in their handshake, and nodes that are known.
    package var counts: (handshakes: Int, nodes: Int) { (handshakes.count, nodes.count) }

    private mutating func save(_ known: Known, _ node: NodeID) {
        stamp += 1
        nodes[node] = known
        nodes[node]?.stamp = stamp
    }

    private mutating func makeRoom(for node: NodeID) -> Bool {
        guard nodes[node] == nil, nodes.count >= PeerLimits.nodes else { return true }
        let idle = nodes.filter { $0.value.sessions.isEmpty }
        guard let oldest = idle.min(by: { $0.value.stamp < $1.value.stamp }) else { return false }
        nodes[oldest.key] = nil
        return true
    }
}
