// The payloads of connection frames: HELLO, READY, PING, PONG, CREDIT, GOODBYE, ERROR (docs/PEER_PROTOCOL.md).
import BatonCore
import NIOCore

/// Protocol versions that a node speaks.
package struct VersionRange: Hashable, Sendable {
    package let lowest: UInt16
    package let highest: UInt16

    package init(lowest: UInt16, highest: UInt16) {
        self.lowest = lowest
        self.highest = highest
    }

    package static let current = VersionRange(lowest: 1, highest: 1)

    /// The version that both speak: the lower of the two highest, unless one of the two is too new for it.
    package func common(with other: VersionRange) -> UInt16? {
        let version = min(highest, other.highest)
        return version >= lowest && version >= other.lowest ? version : nil
    }
}

/// What a node offers beside its version; used where both sides offer it.
package struct PeerFeatures: OptionSet, Hashable, Sendable {
    package let rawValue: UInt32

    package init(rawValue: UInt32) {
        self.rawValue = rawValue
    }

    /// Bodies of SUBMIT as LZ4 blocks.
    package static let lz4 = PeerFeatures(rawValue: 1)
    /// FETCH of single chunks.
    package static let chunks = PeerFeatures(rawValue: 2)
}

/// ```
///  0  u32 "BTNP"            4  u16 lowest version   6  u16 highest version
///  8  u64 node             16  u64 incarnation     24  u64 nonce, not 0    32  u64 echo (0 from the dialer)
/// 40  u32 features         44  u8 channel          45  3 zero
/// 48  u32 window octets    52  u32 window frames
/// 56  u16 n, cluster name      u16 n, node name    what follows is ignored
/// ```
package struct Hello: FramePayload {
    package var versions: VersionRange
    package var run: NodeRun
    package var nonce: UInt64
    package var echo: UInt64
    package var features: PeerFeatures
    package var channel: PeerChannel
    package var window: FrameCost
    package var cluster: [UInt8]
    package var name: [UInt8]

    package static let type = FrameType.hello
    static let magic: UInt32 = 0x504e_5442  // "BTNP"

    package init(
        versions: VersionRange, run: NodeRun, nonce: UInt64, echo: UInt64, features: PeerFeatures, channel: PeerChannel,
        window: FrameCost, cluster: [UInt8], name: [UInt8]
    ) {
        self.versions = versions
        self.run = run
        self.nonce = nonce
        self.echo = echo
        self.features = features
        self.channel = channel
        self.window = window
        self.cluster = cluster
        self.name = name
    }

    package var isValid: Bool {
        nonce != 0 && versions.lowest <= versions.highest && versions.lowest > 0
            && (PeerLimits.windowOctetsMin...PeerLimits.windowOctetsMax).contains(window.octets)
            && (PeerLimits.windowFramesMin...PeerLimits.windowFramesMax).contains(window.frames)
            && (1...PeerLimits.nameOctets).contains(cluster.count) && (1...PeerLimits.nameOctets).contains(name.count)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(Self.magic, versions.lowest, versions.highest, endianness: .little)
        buffer.writeRun(run)
        buffer.writeMultipleIntegers(nonce, echo, features.rawValue, endianness: .little)
        buffer.writeMultipleIntegers(channel.rawValue, UInt8(0), UInt16(0), endianness: .little)
        buffer.writeMultipleIntegers(
            UInt32(clamping: window.octets), UInt32(clamping: window.frames), endianness: .little)
        buffer.writeShort(cluster)
        buffer.writeShort(name)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard
            let (magic, lowest, highest) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt16, UInt16).self),
            magic == Self.magic, let run = payload.readRun(),
            let (nonce, echo, features) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt64, UInt32).self),
            let channelValue: UInt8 = payload.readInteger(), let channel = PeerChannel(rawValue: channelValue),
            payload.readZeros(3),
            let (octets, frames) = payload.readMultipleIntegers(endianness: .little, as: (UInt32, UInt32).self),
            let cluster = payload.readShort(), let name = payload.readShort()
        else { return nil }
        _ = payload.readRest()
        self.init(
            versions: VersionRange(lowest: lowest, highest: highest), run: run, nonce: nonce, echo: echo,
            features: PeerFeatures(rawValue: features), channel: channel,
            window: FrameCost(octets: Int(octets), frames: Int(frames)), cluster: cluster, name: name)
    }

    /// Whether a payload begins as a HELLO does; asked first, so that a stranger is told apart from a damaged peer.
    static func hasMagic(_ payload: ByteBuffer) -> Bool {
        payload.getInteger(at: payload.readerIndex, endianness: .little) == magic
    }
}

/// `u64 echo (the acceptor's nonce)   u16 version in force`
package struct Ready: FramePayload {
    package var echo: UInt64
    package var version: UInt16

    package static let type = FrameType.ready

    package init(echo: UInt64, version: UInt16) {
        self.echo = echo
        self.version = version
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(echo, version, endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let (echo, version) = payload.readMultipleIntegers(endianness: .little, as: (UInt64, UInt16).self) else {
            return nil
        }
        self.init(echo: echo, version: version)
    }
}

/// The content of PING, and of the PONG that repeats it: `u64 number   i64 the pinging side's time (ns)`.
package struct Beat: Hashable, Sendable {
    package var number: UInt64
    package var at: Instant

    package init(number: UInt64, at: Instant) {
        self.number = number
        self.at = at
    }

    static let length = 16

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(number, at.nanoseconds, endianness: .little)
    }

    init?(reading payload: inout ByteBuffer) {
        guard let (number, at) = payload.readMultipleIntegers(endianness: .little, as: (UInt64, Int64).self) else {
            return nil
        }
        self.init(number: number, at: Instant(nanoseconds: at))
    }
}

package struct Ping: FramePayload {
    package var beat: Beat

    package static let type = FrameType.ping

    package init(_ beat: Beat) {
        self.beat = beat
    }

    func write(into buffer: inout ByteBuffer) { beat.write(into: &buffer) }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let beat = Beat(reading: &payload) else { return nil }
        self.init(beat)
    }
}

package struct Pong: FramePayload {
    package var beat: Beat

    package static let type = FrameType.pong

    package init(_ beat: Beat) {
        self.beat = beat
    }

    func write(into buffer: inout ByteBuffer) { beat.write(into: &buffer) }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let beat = Beat(reading: &payload) else { return nil }
        self.init(beat)
    }
}

/// What the receiver has finished with: `u32 octets   u32 frames, not 0`.
package struct Credit: FramePayload {
    package var cost: FrameCost

    package static let type = FrameType.credit

    package init(_ cost: FrameCost) {
        self.cost = cost
    }

    package var isValid: Bool {
        (1...PeerLimits.windowFramesMax).contains(cost.frames) && (1...PeerLimits.windowOctetsMax).contains(cost.octets)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(UInt32(clamping: cost.octets), UInt32(clamping: cost.frames), endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let (octets, frames) = payload.readMultipleIntegers(endianness: .little, as: (UInt32, UInt32).self)
        else { return nil }
        self.init(FrameCost(octets: Int(octets), frames: Int(frames)))
    }
}

package enum GoodbyeReason: UInt8, CaseIterable, Sendable {
    /// The process ends.
    case stopping = 1
    /// The node has handed its work over and leaves the cluster.
    case drained = 2
    /// The connection is made anew with other settings.
    case reconfigured = 3
}

/// `u8 reason`
package struct Goodbye: FramePayload {
    package var reason: GoodbyeReason

    package static let type = FrameType.goodbye

    package init(_ reason: GoodbyeReason) {
        self.reason = reason
    }

    func write(into buffer: inout ByteBuffer) { buffer.writeInteger(reason.rawValue) }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let value: UInt8 = payload.readInteger(), let reason = GoodbyeReason(rawValue: value) else { return nil }
        self.init(reason)
    }
}

/// Why the sender closes now: `u16 code   u16 n, text`. Codes of later versions are read as they are.
package struct ErrorReport: FramePayload {
    package var code: UInt16
    package var text: [UInt8]

    package static let type = FrameType.error

    package init(code: UInt16, text: [UInt8]) {
        self.code = code
        self.text = text
    }

    package init(_ violation: PeerViolation) {
        self.init(code: violation.rawValue, text: Array("\(violation)".utf8.prefix(PeerLimits.errorTextOctets)))
    }

    package var isValid: Bool { text.count <= PeerLimits.errorTextOctets }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeInteger(code, endianness: .little)
        buffer.writeShort(text)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let code: UInt16 = payload.readInteger(endianness: .little), let text = payload.readShort() else {
            return nil
        }
        self.init(code: code, text: text)
    }
}
