// What a fuzz entry throws when something that must always hold does not, and how entries cut their input.
import NIOCore

/// Every entry: any octets in, nothing out; throws what it found. A trap is a finding as well.
typealias FuzzEntry = @Sendable ([UInt8]) throws -> Void

struct Finding: Error, CustomStringConvertible {
    let description: String
}

func hold(_ condition: Bool, _ what: @autoclosure () -> String) throws {
    if !condition { throw Finding(description: what()) }
}

/// All entries by the name of their target and corpus.
let fuzzEntries: [String: FuzzEntry] = [
    "commands": fuzzCommands, "session": fuzzSession, "data": fuzzData, "replies": fuzzReplies, "client": fuzzClient,
    "addresses": fuzzAddresses, "envelope": fuzzEnvelope, "chunks": fuzzChunks, "outcomes": fuzzOutcomes,
    "dns": fuzzDNS, "headers": fuzzHeaders, "peer": fuzzPeer,
]

/// The pieces of `octets` with lengths that follow from `seed`: the same stream as a network might cut it.
func cut(_ octets: [UInt8], seed: UInt8) -> [[UInt8]] {
    guard seed != 0 else { return octets.map { [$0] } }
    var pieces: [[UInt8]] = []
    var at = 0
    var state = UInt32(seed)
    while at < octets.count {
        state = state &* 1_664_525 &+ 1_013_904_223
        let length = min(octets.count - at, 1 + Int((state >> 24) % UInt32(seed)))
        pieces.append(Array(octets[at..<(at + length)]))
        at += length
    }
    return pieces
}

extension ByteBuffer {
    var octets: [UInt8] { Array(readableBytesView) }
}
