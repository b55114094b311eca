// Flow control: how much each side of a connection may have under way (docs/PEER_PROTOCOL.md, "Credit").
import BatonCore

/// The sender's view of its peer's window: what it may still send. A frame goes whole or waits.
package struct SendWindow: Hashable, Sendable {
    package let size: FrameCost
    package private(set) var available: FrameCost

    package init(size: FrameCost) {
        self.size = size
        self.available = size
    }

    /// Takes what a frame costs; false, and nothing taken, while there is less.
    package mutating func take(_ cost: FrameCost) -> Bool {
        guard cost.octets <= available.octets, cost.frames <= available.frames else { return false }
        available.octets -= cost.octets
        available.frames -= cost.frames
        return true
    }

    /// The peer has finished with so much. More than was used is a breach: it would let this side send without bound.
    package mutating func grant(_ cost: FrameCost) throws(PeerViolation) {
        guard cost.octets >= 0, cost.frames >= 1, cost.octets <= size.octets - available.octets,
            cost.frames <= size.frames - available.frames
        else { throw .creditOverflow }
        available.octets += cost.octets
        available.frames += cost.frames
    }
}

/// The receiver's own window: what the peer may still send, and what waits to be given back.
///
/// Invariant: `open` + held by whoever got the messages + `owed` = `size`. So whatever the peer does, no more than `size` is here.
package struct ReceiveWindow: Hashable, Sendable {
    package let size: FrameCost
    /// What the peer may still send.
    package private(set) var open: FrameCost
    /// Finished with and not given back yet.
    package private(set) var owed = FrameCost.zero

    package init(size: FrameCost) {
        self.size = size
        self.open = size
    }

    /// What is delivered and not released.
    package var held: FrameCost {
        FrameCost(
            octets: size.octets - open.octets - owed.octets, frames: size.frames - open.frames - owed.frames)
    }

    /// A frame of the peer was announced. Asked before anything is allocated for it.
    package mutating func use(_ cost: FrameCost) throws(PeerViolation) {
        guard cost.octets <= open.octets, cost.frames <= open.frames else { throw .creditOverrun }
        open.octets -= cost.octets
        open.frames -= cost.frames
    }

    /// Messages of this cost are finished with. Returns what is to be given back now: nothing until a portion has gathered,
    /// so that small messages do not each cost a CREDIT.
    ///
    /// Releasing more than is held is a mistake of this process, which would undo the bound: it stops here.
    package mutating func release(_ cost: FrameCost) -> FrameCost? {
        let held = held
        precondition(
            cost.octets >= 0 && cost.frames >= 0 && cost.octets <= held.octets && cost.frames <= held.frames,
            "released more than was delivered")
        owed.octets += cost.octets
        owed.frames += cost.frames
        let isDue =
            owed.octets >= size.octets / PeerLimits.creditPortions
            || owed.frames >= size.frames / PeerLimits.creditPortions
        guard isDue, owed.frames > 0, owed.octets > 0 else { return nil }
        let given = owed
        open.octets += given.octets
        open.frames += given.frames
        owed = .zero
        return given
    }
}
