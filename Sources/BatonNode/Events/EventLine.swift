// One line of the event log while it is written: JSON octets into memory of a known size.
import BatonCore
import BatonModel
import Glibc

/// Writes JSON into a buffer that is large enough by construction (`EventJSON.withLine`); a write past its end traps, since
/// memory would be overwritten otherwise. Nothing from outside decides about lengths: values are measured before.
struct EventLine {
    /// Octets of a line besides its values of free length: names, numbers, ids and times take less than half of this.
    static let fixedMax = 2048

    private let memory: UnsafeMutableBufferPointer<UInt8>
    private var count = 0

    init(_ memory: UnsafeMutableBufferPointer<UInt8>) {
        self.memory = memory
    }

    var written: UnsafeBufferPointer<UInt8> { UnsafeBufferPointer(rebasing: memory[..<count]) }

    // MARK: Members

    mutating func response(_ reply: SMTPReply?) {
        guard let reply else {
            text(",\"response\":null")
            return
        }
        text(",\"response\":{\"code\":")
        number(Int64(reply.code))
        if let status = reply.status {
            text(",\"enhanced_code\":{\"class\":")
            number(Int64(status.classDigit))
            text(",\"subject\":")
            number(Int64(status.subject))
            text(",\"detail\":")
            number(Int64(status.detail))
            put(UInt8(ascii: "}"))
        } else {
            text(",\"enhanced_code\":null")
        }
        text(",\"content\":")
        string(reply.text)
        text(",\"command\":\"")
        text(reply.stage.name)
        text("\"}")
    }

    mutating func peer(name: [UInt8], address: [UInt8], isKnown: Bool) {
        guard isKnown else {
            text(",\"peer_address\":null")
            return
        }
        text(",\"peer_address\":{\"name\":")
        string(name)
        text(",\"addr\":")
        string(address)
        put(UInt8(ascii: "}"))
    }

    /// `second`: the RFC 3339 text of the whole second.
    mutating func time(_ at: Instant, second: [UInt8]) {
        let whole = at.secondsSinceEpoch
        text(",\"timestamp\":")
        number(whole)
        text(",\"event_time\":\"")
        second.withUnsafeBufferPointer { copy($0) }
        put(UInt8(ascii: "."))
        let micros = at.nanoseconds &- whole &* 1_000_000_000
        var rest = micros / 1000
        var divisor: Int64 = 100_000
        while divisor > 0 {
            put(UInt8(truncatingIfNeeded: 0x30 + rest / divisor))
            rest %= divisor
            divisor /= 10
        }
        text("Z\"")
    }

    mutating func session(_ id: UInt64, nodeID: [UInt8]) {
        text(",\"session_id\":\"")
        for shift in stride(from: UInt64(60), through: 0, by: -4) {
            put(Self.hex(UInt8(truncatingIfNeeded: id >> shift & 15)))
        }
        text("\",\"nodeid\":")
        string(nodeID)
        text(",\"tls_protocol_version\":null,\"tls_cipher\":null}\n")
    }

    // MARK: Values

    mutating func text(_ text: StaticString) {
        copy(UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
    }

    /// A name of ours: no escapes.
    mutating func text(_ text: String) {
        var text = text
        text.withUTF8 { copy($0) }
    }

    mutating func id(_ id: MessageID) { id.forEachCharacter { put($0) } }

    mutating func number(_ value: Int64) {
        if value < 0 { put(UInt8(ascii: "-")) }
        var rest = value.magnitude
        var length = 1
        while length < 20, rest >= 10 {
            rest /= 10
            length += 1
        }
        precondition(count + length <= memory.count)
        rest = value.magnitude
        for position in stride(from: length - 1, through: 0, by: -1) {
            memory[count + position] = UInt8(truncatingIfNeeded: 0x30 + rest % 10)
            rest /= 10
        }
        count += length
    }

    mutating func string(_ value: [UInt8]) {
        put(UInt8(ascii: "\""))
        value.withUnsafeBufferPointer { escaped($0) }
        put(UInt8(ascii: "\""))
    }

    /// The domain of an address in lower case, as queues are named.
    mutating func domain(_ address: MailAddress) {
        put(UInt8(ascii: "\""))
        let start = count
        address.bytes.withUnsafeBufferPointer { all in
            escaped(UnsafeBufferPointer(rebasing: all[(address.localPartCount + 1)...]))
        }
        for position in start..<count where memory[position] >= 0x41 && memory[position] <= 0x5a {
            memory[position] |= 0x20
        }
        if count - start > 1, memory[count - 1] == UInt8(ascii: ".") { count -= 1 }
        put(UInt8(ascii: "\""))
    }

    private mutating func escaped(_ value: UnsafeBufferPointer<UInt8>) {
        var special = false
        var high: UInt8 = 0
        for byte in value {
            high |= byte
            if byte < 0x20 || byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") || byte == 0x7f {
                special = true
            }
        }
        if high < 0x80, !special {
            copy(value)
        } else if high < 0x80 {
            for byte in value { escape(byte) }
        } else {
            // Repaired: invalid UTF-8 becomes U+FFFD.
            for byte in String(decoding: value, as: UTF8.self).utf8 { escape(byte) }
        }
    }

    private mutating func escape(_ byte: UInt8) {
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"):
            put(UInt8(ascii: "\\"))
            put(byte)
        case 0x0a: text("\\n")
        case 0x00..<0x20, 0x7f:
            text("\\u00")
            put(Self.hex(byte >> 4))
            put(Self.hex(byte & 15))
        default: put(byte)
        }
    }

    private static func hex(_ nibble: UInt8) -> UInt8 { nibble < 10 ? 0x30 + nibble : 0x57 + nibble }

    @inline(__always)
    private mutating func put(_ byte: UInt8) {
        precondition(count < memory.count)
        memory[count] = byte
        count += 1
    }

    @inline(__always)
    private mutating func copy(_ octets: UnsafeBufferPointer<UInt8>) {
        guard let from = octets.baseAddress, let base = memory.baseAddress else { return }
        precondition(octets.count <= memory.count - count)
        memcpy(base + count, from, octets.count)
        count += octets.count
    }
}
