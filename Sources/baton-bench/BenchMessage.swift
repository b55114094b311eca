// Messages of the load: their id field, seeded text-like bodies, recipients and domains by Zipf.
import BatonCore
import CBatonSystem
import Glibc
import NIOCore

/// A message's name in a run: `X-Bench-Id: 1a2b3c4d-0000000000000001` (hexadecimal run and index).
struct BenchID: Equatable, Sendable {
    let run: UInt32
    let index: UInt64

    static let textLength = 25

    init(run: UInt32, index: UInt64) {
        self.run = run
        self.index = index
    }

    /// Reads the field's value up to its line end; nil for anything but the exact form.
    init?(field: some Collection<UInt8>) {
        var run: UInt64 = 0
        var index: UInt64 = 0
        var position = 0
        for byte in field.prefix(Self.textLength) {
            if position == 8 {
                guard byte == UInt8(ascii: "-") else { return nil }
            } else {
                let digit: UInt64
                switch byte {
                case 0x30...0x39: digit = UInt64(byte - 0x30)
                case 0x61...0x66: digit = UInt64(byte - 0x61 + 10)
                default: return nil
                }
                if position < 8 { run = run << 4 | digit } else { index = index << 4 | digit }
            }
            position += 1
        }
        guard position == Self.textLength else { return nil }
        self.run = UInt32(run)
        self.index = index
    }

    func append(to bytes: inout [UInt8]) {
        for shift in stride(from: 28, through: 0, by: -4) { bytes.append(Self.digit(UInt64(run) >> UInt64(shift))) }
        bytes.append(UInt8(ascii: "-"))
        for shift in stride(from: 60, through: 0, by: -4) { bytes.append(Self.digit(index >> UInt64(shift))) }
    }

    private static func digit(_ value: UInt64) -> UInt8 {
        let low = UInt8(value & 15)
        return low < 10 ? 0x30 + low : 0x61 + low - 10
    }
}

/// A generated message, ready for the wire.
struct BenchMessage: Sendable {
    let id: BenchID
    let recipients: [[UInt8]]
    /// Header, unique to the message. No line of it begins with a dot.
    let header: [UInt8]
    let body: PooledBody
    /// CRC32C and length of header and body before stuffing.
    let checksum: UInt32
    let length: Int
    /// When the message was due (open loop) or begun (closed loop): CLOCK_MONOTONIC, nanoseconds.
    var due: Int64
    /// How often it was begun again after a connection was lost before the final dot.
    var attempts = 0
}

/// A body that several messages share.
final class PooledBody: Sendable {
    let plain: [UInt8]
    /// With stuffed dots and the end mark behind it.
    let wire: ByteBuffer

    init(plain: [UInt8]) {
        self.plain = plain
        var stuffed: [UInt8] = []
        stuffed.reserveCapacity(plain.count + 64)
        var atLineStart = true
        for byte in plain {
            if atLineStart, byte == 0x2e { stuffed.append(0x2e) }
            stuffed.append(byte)
            atLineStart = byte == 0x0a
        }
        stuffed.append(contentsOf: [0x2e, 0x0d, 0x0a])
        self.wire = ByteBuffer(bytes: stuffed)
    }
}

/// What kind of text the bodies are.
enum BodyStyle: String, CaseIterable, Sendable {
    /// English-like lines, some of which begin with dots.
    case text
    /// Base 64 of noise: what an attachment looks like, and what does not compress much.
    case base64
}

/// Draws ranks 0..<count with probability proportional to 1/(rank+1)^exponent, by binary search in the summed weights.
struct ZipfSampler: Sendable {
    private let cumulative: [Double]

    /// `count` is bounded to a million domains.
    init(count: Int, exponent: Double) {
        var sum = 0.0
        self.cumulative = (0..<max(1, min(count, 1_000_000))).map { rank in
            sum += 1 / pow(Double(rank + 1), exponent)
            return sum
        }
    }

    func rank(_ random: inout SplitMix64) -> Int {
        let target = random.unit() * (cumulative.last ?? 1)
        var low = 0
        var high = cumulative.count - 1
        while low < high {
            let middle = (low + high) / 2
            if cumulative[middle] < target { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

/// Makes the messages of a run. One per loop: each draws from its own seeded generator, so a run with the same seed and
/// loops sends the same messages. Memory: the pool of bodies, at most `poolBound` octets or one body.
struct MessageFactory: Sendable {
    static let poolBound = 16 * 1024 * 1024
    static let poolCount = 64

    let run: UInt32
    private let sender: [UInt8]
    private let recipientCount: CountOption
    private let zipf: ZipfSampler
    private let domains: [[UInt8]]
    private let domainSuffix: [UInt8]
    private let pool: [PooledBody]
    private var random: SplitMix64

    init(
        run: UInt32, seed: UInt64, sender: String, recipients: CountOption, domains: Int, zipf: Double, domain: String,
        size: SizeOption, style: BodyStyle
    ) {
        self.run = run
        self.sender = Array(sender.utf8)
        self.recipientCount = recipients
        self.zipf = ZipfSampler(count: domains, exponent: zipf)
        self.domains = domains <= 1 ? [Array(domain.utf8)] : []
        self.domainSuffix = Array(domain.utf8)
        self.random = SplitMix64(seed: seed)
        var bodies = SplitMix64(seed: seed ^ 0x9e37_79b9)
        let mean = max(1, (size.low + size.high) / 2)
        let count = max(1, min(Self.poolCount, Self.poolBound / mean))
        self.pool = (0..<count).map { _ in
            let low = log(Double(max(size.low, 1)))
            let high = log(Double(max(size.high, 1)))
            let target = Int(exp(low + (high - low) * bodies.unit()).rounded())
            let octets = max(0, target - Self.headerEstimate)
            return PooledBody(plain: style == .text ? TextBody.make(octets, &bodies) : TextBody.base64(octets, &bodies))
        }
    }

    /// Octets that the header takes, about; `--size` means the whole message.
    static let headerEstimate = 330

    mutating func make(_ index: UInt64, due: Int64) -> BenchMessage {
        let id = BenchID(run: run, index: index)
        let span = recipientCount.high - recipientCount.low
        let count = span == 0 ? recipientCount.low : recipientCount.low + Int(random.next() % UInt64(span + 1))
        var recipients: [[UInt8]] = []
        recipients.reserveCapacity(count)
        for number in 0..<count {
            var address = Array("r\(number).\(index)@".utf8)
            if let only = domains.first {
                address.append(contentsOf: only)
            } else {
                address.append(contentsOf: "d\(zipf.rank(&random)).".utf8)
                address.append(contentsOf: domainSuffix)
            }
            recipients.append(address)
        }
        let body = pool[Int(random.next() % UInt64(pool.count))]
        var header: [UInt8] = []
        header.reserveCapacity(384)
        func line(_ text: String) { header.append(contentsOf: text.utf8) }
        line("X-Bench-Id: ")
        id.append(to: &header)
        line("\r\nFrom: Bench <")
        header.append(contentsOf: sender)
        line(">\r\nTo: <")
        header.append(contentsOf: recipients.first ?? [])
        line(
            ">\r\nSubject: Your order \(index) is on its way\r\nDate: Mon, 06 Jul 2026 10:00:00 +0000\r\nMessage-ID: <")
        id.append(to: &header)
        line("@bench.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n")
        let checksum = CRC32C.of(body.plain, seed: CRC32C.of(header))
        return BenchMessage(
            id: id, recipients: recipients, header: header, body: body, checksum: checksum,
            length: header.count + body.plain.count, due: due)
    }
}

/// Bodies that look like text to a compressor and to a framing parser.
enum TextBody {
    private static let words = """
        the of and to in a is that for it was on are as with his they be at one have this from or had by hot but some what \
        there we can out other were all your when up use word how said an each she which do their time if will way about \
        many then them would write like so these her long make thing see him two has look more day could go come did my \
        sound no most number who over know water than call first people may down side been now find any new work part take \
        get place made live where after back little only round man year came show every good me give our under name very \
        through just form much great think say help low line before turn cause same mean differ move right boy old too \
        order invoice delivery account customer newsletter offer discount shipping address password confirm unsubscribe
        """.split(whereSeparator: { $0 == " " || $0 == "\n" }).map { Array($0.utf8) }

    /// About `octets` of lines of at most 76 octets, each ending in CRLF; one line in 40 begins with a dot or two.
    static func make(_ octets: Int, _ random: inout SplitMix64) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(octets + 80)
        var line: [UInt8] = []
        while bytes.count + line.count < octets {
            if line.isEmpty {
                let chance = random.next() % 40
                if chance == 0 { line.append(0x2e) }
                if chance == 1 { line.append(contentsOf: [0x2e, 0x2e, 0x20]) }
            }
            // The square favours the frequent words at the front of the list.
            let unit = random.unit()
            let word = words[min(words.count - 1, Int(unit * unit * Double(words.count)))]
            if line.count + word.count > 74 {
                if random.next() % 4 == 0 { line.append(0x2e) }
                bytes.append(contentsOf: line)
                bytes.append(contentsOf: [0x0d, 0x0a])
                line.removeAll(keepingCapacity: true)
                if random.next() % 12 == 0 { bytes.append(contentsOf: [0x0d, 0x0a]) }
            } else {
                if !line.isEmpty { line.append(0x20) }
                line.append(contentsOf: word)
            }
        }
        bytes.append(contentsOf: line)
        bytes.append(contentsOf: [0x0d, 0x0a])
        return bytes
    }

    static func base64(_ octets: Int, _ random: inout SplitMix64) -> [UInt8] {
        let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(octets + 80)
        while bytes.count < octets {
            var word = random.next()
            for column in 0..<76 {
                if column % 10 == 0 { word = random.next() }
                bytes.append(alphabet[Int(word & 63)])
                word >>= 6
            }
            bytes.append(contentsOf: [0x0d, 0x0a])
        }
        return bytes
    }
}
