// The history files: one fixed-size record per message and recipient, written by sender and sink, joined by the reconciler.
import Glibc
import Synchronization

/// What a record says of one message and recipient.
enum HistoryKind: UInt8, Sendable {
    /// Sender: the relay answered 2xx to the final dot.
    case accepted = 1
    /// Sender: the relay answered 4xx or 5xx somewhere.
    case refused = 2
    /// Sender: the connection went after the final dot and before its reply.
    case inDoubt = 3
    /// Sink: received whole and answered 2xx.
    case received = 4
    /// Sink: received whole, and answered 4xx, 5xx or with a dropped connection on purpose.
    case receivedUnanswered = 5
    /// Sink: a delivery report about the message; `code` holds a `ReportAction`.
    case report = 6
}

/// `Action` of a delivery report (RFC 3464 2.3.3) as the `code` of a record.
enum ReportAction: UInt16, Sendable {
    case unknown = 0
    case failed = 1
    case delayed = 2
    case delivered = 3
    case relayed = 4
    case expanded = 5
}

/// One record. 72 octets on disk, little-endian:
///
///     0 kind u8 | 1 queue id length u8 | 2 recipient u16 | 4 reply code u16 | 6 zero u16 | 8 index u64
///     16 CRC32C u32 | 20 length u32 | 24 begun i64 | 32 finished i64 | 40 run u32 | 44 queue id, 28 octets
///
/// Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
struct HistoryRecord: Equatable, Sendable {
    var kind: HistoryKind
    var run: UInt32
    var index: UInt64
    /// Which recipient of the message, from 0; `unknownRecipient` if its address did not say.
    var recipient: UInt16
    var code: UInt16
    var checksum: UInt32
    var length: UInt32
    var begun: Int64
    var finished: Int64
    /// The relay's id of the message, from its reply (sender) or its Received field (sink); 28 octets at most are kept.
    var queueID: [UInt8] = []

    static let size = 72
    static let queueIDBound = 28
    static let unknownRecipient = UInt16.max
    /// Index of messages that carry no id of ours.
    static let foreignIndex = UInt64.max

    func encode(into bytes: inout [UInt8]) {
        func put<T: FixedWidthInteger>(_ value: T) {
            withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
        }
        let kept = queueID.prefix(Self.queueIDBound)
        put(kind.rawValue)
        put(UInt8(kept.count))
        put(recipient)
        put(code)
        put(UInt16(0))
        put(index)
        put(checksum)
        put(length)
        put(begun)
        put(finished)
        put(run)
        bytes.append(contentsOf: kept)
        for _ in kept.count..<Self.queueIDBound { bytes.append(0) }
    }

    /// Nil for an unknown kind or a length that does not fit.
    init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= Self.size else { return nil }
        func get<T: FixedWidthInteger>(_ offset: Int, as type: T.Type) -> T {
            T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: type))
        }
        guard let kind = HistoryKind(rawValue: get(0, as: UInt8.self)) else { return nil }
        let length = Int(get(1, as: UInt8.self))
        guard length <= Self.queueIDBound else { return nil }
        self.kind = kind
        self.recipient = get(2, as: UInt16.self)
        self.code = get(4, as: UInt16.self)
        self.index = get(8, as: UInt64.self)
        self.checksum = get(16, as: UInt32.self)
        self.length = get(20, as: UInt32.self)
        self.begun = get(24, as: Int64.self)
        self.finished = get(32, as: Int64.self)
        self.run = get(40, as: UInt32.self)
        self.queueID = Array(bytes[44..<(44 + length)])
    }

    init(
        kind: HistoryKind, run: UInt32, index: UInt64, recipient: UInt16, code: UInt16, checksum: UInt32,
        length: UInt32,
        begun: Int64, finished: Int64, queueID: [UInt8] = []
    ) {
        self.kind = kind
        self.run = run
        self.index = index
        self.recipient = recipient
        self.code = code
        self.checksum = checksum
        self.length = length
        self.begun = begun
        self.finished = finished
        self.queueID = queueID
    }
}

/// Appends records to a file. Safe from any thread; holds at most `bufferBound` octets unwritten.
///
/// A record is in the page cache after `flush`, so it survives a kill of this process, not of the machine.
final class HistoryWriter: Sendable {
    private struct State {
        var descriptor: Int32
        var buffer: [UInt8] = []
        var failure: Int32 = 0
    }
    private let state: Mutex<State>
    static let bufferBound = 64 * 1024

    init(path: String) throws {
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw BenchError.system("open \(path)", errno) }
        self.state = Mutex(State(descriptor: descriptor))
    }

    func append(_ record: HistoryRecord) {
        state.withLock { state in
            record.encode(into: &state.buffer)
            if state.buffer.count >= Self.bufferBound { Self.write(&state) }
        }
    }

    func flush() { state.withLock { Self.write(&$0) } }

    /// Flushes and closes; throws if any write failed, since a history with holes would report losses that never were.
    func close() throws {
        let failure = state.withLock { state -> Int32 in
            Self.write(&state)
            if state.descriptor >= 0 { _ = Glibc.close(state.descriptor) }
            state.descriptor = -1
            return state.failure
        }
        if failure != 0 { throw BenchError.system("write history", failure) }
    }

    private static func write(_ state: inout State) {
        guard state.descriptor >= 0, !state.buffer.isEmpty else { return }
        let failure = state.buffer.withUnsafeBytes { writeAll(state.descriptor, $0) }
        if failure != 0, state.failure == 0 { state.failure = failure }
        state.buffer.removeAll(keepingCapacity: true)
    }
}

/// Reads a history from where it last stopped, so that a growing file can be followed.
struct HistoryReader: ~Copyable {
    private let descriptor: Int32
    private var offset: off_t = 0
    private var block = [UInt8](repeating: 0, count: HistoryRecord.size * 4096)
    /// Records that made no sense: a defect of the files, never expected.
    private(set) var damaged = 0

    init(path: String) throws {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw BenchError.system("open \(path)", errno) }
        self.descriptor = descriptor
    }

    deinit { _ = Glibc.close(descriptor) }

    /// Hands over every whole record that is new; a half-written last one waits for the next call.
    mutating func forEachNew(_ body: (HistoryRecord) -> Void) throws {
        while true {
            let got = block.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, $0.count, offset) }
            if got < 0, errno == EINTR { continue }
            guard got >= 0 else { throw BenchError.system("read history", errno) }
            let whole = got / HistoryRecord.size
            if whole == 0 { return }
            block.withUnsafeBytes { bytes in
                for slot in 0..<whole {
                    let start = slot * HistoryRecord.size
                    let slice = UnsafeRawBufferPointer(rebasing: bytes[start..<(start + HistoryRecord.size)])
                    if let record = HistoryRecord(slice) { body(record) } else { damaged += 1 }
                }
            }
            offset += off_t(whole * HistoryRecord.size)
        }
    }
}

/// Writes all octets; 0 or the errno.
func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int32 {
    var rest = bytes
    while !rest.isEmpty {
        let wrote = write(descriptor, rest.baseAddress, rest.count)
        if wrote < 0 {
            if errno == EINTR { continue }
            return errno
        }
        rest = UnsafeRawBufferPointer(rebasing: rest[wrote...])
    }
    return 0
}

/// What can go wrong with the bench itself.
struct BenchError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }

    static func system(_ what: String, _ code: Int32) -> BenchError {
        BenchError("\(what): \(String(cString: strerror(code)))")
    }
}
