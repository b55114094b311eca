// CRC32C by instruction, by table, in pieces and joined.
import BatonCore
import CBatonSystem
import Testing

private func octets(_ count: Int, seed: UInt64) -> [UInt8] {
    var random = SplitMix64(seed: seed)
    return (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) }
}

@Test func crcOfPublishedVectors() {
    // RFC 3720 B.4.
    #expect(CRC32C.of([UInt8](repeating: 0, count: 32)) == 0x8a91_36aa)
    #expect(CRC32C.of([UInt8](repeating: 0xff, count: 32)) == 0x62a8_ab43)
    #expect(CRC32C.of((0..<32).map { UInt8($0) }) == 0x46dd_794e)
    #expect(CRC32C.of(Array("123456789".utf8)) == 0xe306_9283)
    #expect(CRC32C.of([UInt8]()) == 0)
}

@Test func crcByInstructionAndByTableAgreeAtEveryLengthAndOffset() {
    let all = octets(600, seed: 5)
    for start in 0..<9 {
        for length in 0..<300 {
            let piece = Array(all[start..<(start + length)])
            let table = piece.withUnsafeBytes { baton_crc32c_software(7, $0.baseAddress, $0.count) }
            #expect(length == 0 || CRC32C.of(piece, seed: 7) == table)
        }
    }
}

@Test func crcOfPiecesIsTheCRCOfTheWhole() {
    let all = octets(5000, seed: 6)
    let whole = CRC32C.of(all)
    for cut in [0, 1, 2, 7, 8, 63, 64, 65, 1023, 1024, 2500, 4999, 5000] {
        let head = CRC32C.of(Array(all[..<cut]))
        let tail = Array(all[cut...])
        #expect(CRC32C.of(tail, seed: head) == whole, "continued at \(cut)")
        #expect(CRC32C.combined(head, CRC32C.of(tail), lengthOfB: tail.count) == whole, "joined at \(cut)")
    }
}

@Test func crcOfAMebibyteJoinedFromManyPieces() {
    let all = octets(1 << 20, seed: 8)
    var joined: UInt32 = 0
    var at = 0
    var random = SplitMix64(seed: 9)
    while at < all.count {
        let next = min(all.count, at + Int(random.next() % 70_000))
        joined = CRC32C.combined(joined, CRC32C.of(Array(all[at..<next])), lengthOfB: next - at)
        at = next
    }
    #expect(joined == CRC32C.of(all), "seeds 8, 9")
}
