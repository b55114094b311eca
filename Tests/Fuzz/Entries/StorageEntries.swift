// Fuzz entries for what is read back from disk: envelopes, chunks, records, outcome logs. Checksums are set right first where
// they would keep everything else from being reached.
import BatonCore
import BatonModel
import NIOCore

@testable import BatonSpool

@Sendable func fuzzEnvelope(_ input: [UInt8]) throws {
    guard let envelope = EnvelopeCodec.decode(ByteBuffer(bytes: input)) else { return }
    var again = ByteBuffer()
    EnvelopeCodec.encode(envelope, into: &again)
    try hold(again.octets == input, "encoded again, the envelope differs")
}

/// The first octet chooses: a header, records of an envelope block, or a compressed body.
@Sendable func fuzzChunks(_ input: [UInt8]) throws {
    guard let first = input.first else { return }
    let octets = Array(input.dropFirst())
    switch first % 4 {
    case 0: try fuzzHeader(octets)
    case 1: try fuzzRecords(octets, sealed: true)
    case 2: try fuzzRecords(octets, sealed: false)
    default:
        guard octets.count >= 2 else { return }
        let length = Int(octets[0]) << 8 | Int(octets[1])
        let body = ByteBuffer(bytes: octets.dropFirst(2))
        if let raw = LZ4.decompress(body, rawLength: length) {
            try hold(raw.readableBytes == length, "\(raw.readableBytes) octets, not \(length)")
        }
    }
}

private func fuzzHeader(_ octets: [UInt8]) throws {
    var buffer = ByteBuffer(bytes: octets)
    _ = ChunkHeader.parse(buffer)
    guard octets.count >= ChunkHeader.length else { return }
    buffer.setInteger(ChunkHeader.magic, at: 0, endianness: .little)
    buffer.setInteger(ChunkHeader.version, at: 4, endianness: .little)
    buffer.setInteger(UInt16(ChunkHeader.length), at: 6, endianness: .little)
    let end = ChunkHeader.length - 4
    buffer.setInteger(buffer.crc32c(at: 0, length: end), at: end, endianness: .little)
    guard let (header, _) = ChunkHeader.parse(buffer) else { return }
    try hold(header.end > header.offset && header.bodyOffset <= header.end, "a chunk without room")
    try hold(header.contentLength <= ChunkHeader.padded(header.contentLength), "padding that cuts")
    var again = ByteBuffer(repeating: 0, count: ChunkHeader.length)
    header.write(over: &again)
    try hold(ChunkHeader.parse(again)?.header == header, "written again, the header differs")
}

private func fuzzRecords(_ octets: [UInt8], sealed: Bool) throws {
    var block = ByteBuffer(bytes: octets)
    var offset = 0
    var count = 0
    while block.readableBytes >= 8 {
        if sealed, let length: UInt32 = block.getInteger(at: block.readerIndex, endianness: .little),
            length >= 16, length <= block.readableBytes
        {
            RecordFormat.seal(recordAt: block.readerIndex, length: Int(length), in: &block)
        }
        let before = block.readerIndex
        guard let record = RecordFormat.read(&block, blockOffset: offset) else { return }
        try hold(block.readerIndex > before, "a record of no length")
        offset += block.readerIndex - before
        count += 1
        if case .message(let message, _, _) = record {
            try hold(message.fragmented || message.extents.count == 1, "\(message.extents.count) extents")
            try hold(message.storedBytes >= 0, "\(message.storedBytes) stored")
        }
    }
    try hold(count <= octets.count / 16, "\(count) records")
}

private let segment = SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3)

/// The first octet chooses: the file as it is, or entries (kind, length, payload) that are given their checksums.
@Sendable func fuzzOutcomes(_ input: [UInt8]) throws {
    guard let first = input.first else { return }
    let octets = Array(input.dropFirst())
    let (header, seed) = OutcomeFormat.header(segment)
    var file = header
    if first & 1 == 0 {
        file.writeBytes(octets)
    } else {
        var rest = octets[...]
        while let kind = rest.popFirst(), let length = rest.popFirst() {
            let payload = rest.prefix(Int(length))
            rest = rest.dropFirst(Int(length))
            let start = file.writerIndex
            file.writeMultipleIntegers(UInt32(0), UInt16(payload.count), kind, ~kind, endianness: .little)
            file.writeBytes(payload)
            let crc = file.crc32c(at: start + 4, length: file.writerIndex - start - 4, seed: seed)
            file.setInteger(crc, at: start, endianness: .little)
        }
    }
    var entries: [OutcomeEntry] = []
    var last = 0
    var ends: [Int] = []
    let (valid, damaged) = OutcomeFormat.scan(file, segment: segment) { entry, end in
        entries.append(entry)
        ends.append(end)
        last = end
    }
    try hold(valid >= last && valid <= file.readableBytes && damaged <= file.readableBytes, "valid \(valid)")
    try hold(zip(ends, ends.dropFirst()).allSatisfy { $0 < $1 }, "entries out of order")
    // What was read is written and read again as the same.
    var again = header
    for entry in entries { OutcomeFormat.write(entry, seed: seed, into: &again) }
    var back: [OutcomeEntry] = []
    let (end, loss) = OutcomeFormat.scan(again, segment: segment) { entry, _ in back.append(entry) }
    try hold(
        end == again.readableBytes && loss == 0 && back.count == entries.count, "\(back.count) of \(entries.count)")
    for (one, other) in zip(entries, back) {
        guard case .outcome(let left) = one, case .outcome(let right) = other else { continue }
        try hold(left == right, "\(left) // \(right)")
    }
    // A raw file as its own header.
    _ = OutcomeFormat.scan(ByteBuffer(bytes: octets), segment: segment) { _, _ in }
    if let decoded = RegistryFormat.decode(ByteBuffer(bytes: octets)) {
        let payload = RegistryFormat.encode(id: decoded.id, revision: decoded.revision, keys: decoded.keys)
        try hold(RegistryFormat.decode(payload)?.keys == decoded.keys, "the registry differs")
    }
}
