// DATA framing: the end of data, dots, smuggling, splits; and the facts found about a body on the way.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

/// What framing makes of pieces of input.
private struct Framed: Equatable {
    var content: [UInt8] = []
    var ended = false
    var used = 0
    var violation: FramingViolation?
    var leadingDots = 0
    var longestLine = 0
    var endsWithCRLF = true
    var headerLength: Int?
    var eightBit = [false, false]
}

private func frame(
    _ pieces: [[UInt8]], kind: DataFraming.Kind = .dotted, normalize: Bool = false
) -> Framed {
    var framing = DataFraming(kind, normalizesBareLF: normalize)
    var body = IncomingBody()
    body.begin(expected: nil)
    var result = Framed()
    for piece in pieces where !result.ended {
        let (used, ended) = piece.withUnsafeBytes { framing.receive($0, into: &body) }
        result.used += used
        result.ended = ended
    }
    if kind == .counted { framing.finish() }
    result.violation = framing.violation
    result.leadingDots = framing.leadingDots
    result.longestLine = framing.longestLine
    result.endsWithCRLF = framing.endsWithCRLF
    result.headerLength = body.header.length
    result.eightBit = [body.hasEightBitHeader, body.hasEightBitBody]
    result.content =
        body.takePieces().flatMap { Array($0.readableBytesView) } + Array(body.takeRest().readableBytesView)
    result.content.removeFirst(IncomingBody.headroom)
    return result
}

private func frame(_ text: String, kind: DataFraming.Kind = .dotted, normalize: Bool = false) -> Framed {
    frame([Array(text.utf8)], kind: kind, normalize: normalize)
}

private func text(_ framed: Framed) -> String { String(decoding: framed.content, as: UTF8.self) }

/// A slow reading of RFC 5321 4.5.2, octet by octet, to compare with.
private func reference(_ input: [UInt8]) -> (content: [UInt8], used: Int, ended: Bool) {
    var content: [UInt8] = []
    var index = 0
    var atStart = true
    while index < input.count {
        if atStart, input[index] == UInt8(ascii: ".") {
            if index + 2 < input.count, input[index + 1] == 13, input[index + 2] == 10 {
                return (content, index + 3, true)
            }
            if index + 2 >= input.count, input[index...].elementsEqual([46, 13][..<(input.count - index)]) {
                return (content, input.count, false)
            }
            index += 1
            atStart = false
            continue
        }
        atStart = input[index] == 10 && index > 0 && input[index - 1] == 13
        content.append(input[index])
        index += 1
    }
    return (content, index, false)
}

@Test func onlyTheLoneDotLineEndsData() {
    let plain = frame("a\r\nb\r\n.\r\nMAIL")
    #expect(plain.ended && text(plain) == "a\r\nb\r\n" && plain.used == 9)
    #expect(frame(".\r\n").ended)
    #expect(text(frame(".\r\n")).isEmpty)
    #expect(frame("\r\n.\r\n").content == [13, 10])
    #expect(!frame("a.\r\n").ended)
    #expect(!frame("a\r\n.").ended)
    #expect(!frame("a\r\n.\r").ended)
}

/// The list of the smuggling scanners (notes 5b): each is followed by what the attacker hopes is a new command.
private let smugglers: [(name: String, octets: String)] = [
    ("LF.LF", "\n.\n"), ("LF.CR", "\n.\r"), ("CR.LF", "\r.\n"), ("CR.CR", "\r.\r"), ("LF.CRLF", "\n.\r\n"),
    ("CR.CRLF", "\r.\r\n"), ("CRLF NUL . CRLF", "\r\n\0.\r\n"), ("CRLF.CR CR LF", "\r\n.\r\r\n"),
    ("CR CRLF . CR CRLF", "\r\r\n.\r\r\n"), ("CRLF.LF", "\r\n.\n"), ("CRLF.CR", "\r\n.\r"),
    ("CRLF NUL.LF", "\r\n\0.\n"),
    ("CRLF . NUL CRLF", "\r\n.\0\r\n"), ("CR LF CR . CRLF", "\r\n\r.\r\n"),
]

@Test(arguments: smugglers.indices)
func smuggledEndOfDataNeitherEndsNorPasses(index: Int) {
    let (name, octets) = smugglers[index]
    let input = Array("text\(octets)MAIL FROM:<evil@x.test>\r\nmore\r\n.\r\n".utf8)
    let whole = frame([input])
    #expect(whole.ended, "\(name)")
    #expect(whole.used == input.count, "\(name) ended early")
    #expect(whole.violation != nil, "\(name) passed unnoticed")
    for split in 1..<input.count {
        let parts = frame([Array(input[..<split]), Array(input[split...])])
        #expect(parts.used == input.count && parts.ended && parts.violation == whole.violation, "\(name) at \(split)")
    }
}

/// With `normalize` bare LF is tolerated inside the text, but the end stays CRLF.CRLF, and the output has no bare LF.
@Test(arguments: smugglers.indices)
func smuggledEndOfDataUnderNormalize(index: Int) {
    let (name, octets) = smugglers[index]
    let input = Array("text\(octets)MAIL FROM:<evil@x.test>\r\nmore\r\n.\r\n".utf8)
    for split in 0..<input.count {
        let parts = frame([Array(input[..<split]), Array(input[split...])], normalize: true)
        #expect(parts.ended && parts.used == input.count, "\(name) at \(split)")
        guard parts.violation == nil else { continue }
        for (place, octet) in parts.content.enumerated() where octet == 10 {
            #expect(place > 0 && parts.content[place - 1] == 13, "\(name) at \(split): bare LF out")
        }
    }
    let loose = frame("text\n.\r\nMAIL\r\n.\r\n", normalize: true)
    #expect(text(loose) == "text\r\n.\r\nMAIL\r\n" && loose.leadingDots == 1 && loose.violation == nil)
    let alone = frame("text\n.\nMAIL\r\n.\r\n", normalize: true)
    #expect(text(alone) == "text\r\n.\r\nMAIL\r\n" && alone.leadingDots == 1)
    #expect(text(frame("a\n..b\r\n.\r\n", normalize: true)) == "a\r\n.b\r\n")
    #expect(frame("a\rb\r\n.\r\n", normalize: true).violation == .bareCR)
    #expect(frame("a\0b\r\n.\r\n", normalize: true).violation == .nul)
}

@Test func bareLineEndsAndNULHaveTheirNames() {
    #expect(frame("a\nb\r\n.\r\n").violation == .bareLF)
    #expect(frame("a\rb\r\n.\r\n").violation == .bareCR)
    #expect(frame("a\0b\r\n.\r\n").violation == .nul)
    #expect(frame("a\r\nb\r\n.\r\n").violation == nil)
}

@Test func dotsAreUnstuffedAndCounted() {
    let framed = frame("..\r\n..x\r\n.y\r\nz.\r\n...\r\n.\r\n")
    #expect(text(framed) == ".\r\n.x\r\ny\r\nz.\r\n..\r\n")
    #expect(framed.leadingDots == 3)
    let counted = frame(".\r\n..x\r\n", kind: .counted)
    #expect(!counted.ended && text(counted) == ".\r\n..x\r\n" && counted.leadingDots == 2)
}

@Test func bdatBodyWithoutFinalCRLFAndWithBareEnds() {
    #expect(frame("abc", kind: .counted).endsWithCRLF == false)
    #expect(frame("abc\r\n", kind: .counted).endsWithCRLF)
    #expect(frame("", kind: .counted).endsWithCRLF)
    // DATA always does; delivery would add an empty line otherwise.
    #expect(frame("abc\r\n.\r\n", kind: .dotted).endsWithCRLF)
    #expect(frame(".\r\n", kind: .dotted).endsWithCRLF)
    #expect(frame("abc\r", kind: .counted).violation == .bareCR)
    #expect(frame("a\nb", kind: .counted).violation == .bareLF)
}

/// Every DATA ends with CRLF; who forgets it sends the message on with one empty line more.
@Test func dataTakenForABodyWithoutItsLastCRLF() {
    for text in ["a\r\n.\r\n", ".\r\n", "\r\n.\r\n", "..\r\n.\r\n"] {
        #expect(frame(text).endsWithCRLF)
        #expect(frame(Array(text.utf8).map { [$0] }).endsWithCRLF)
    }
    #expect(frame("a\n.\r\n.\r\n", normalize: true).endsWithCRLF)
}

@Test func longestLineCountsWithoutItsEnd() {
    #expect(frame("12345\r\n123\r\n.\r\n").longestLine == 5)
    #expect(frame("12345678").longestLine == 8)
    #expect(frame([Array("1234".utf8), Array("5678\r\n1\r\n".utf8)]).longestLine == 8)
}

@Test func headerEndAndEightBitFacts() {
    let framed = frame("Subject: x\r\n\r\nh\u{e9}\r\n.\r\n")
    #expect(framed.headerLength == 14)
    #expect(framed.eightBit == [false, true])
    #expect(frame("Subject: \u{e9}\r\n\r\nh\r\n.\r\n").eightBit == [true, false])
    #expect(frame("no header end \u{e9}\r\n.\r\n").headerLength == nil)
    #expect(frame("\r\nbody\r\n.\r\n").headerLength == 2)
}

/// 3,000 random bodies of the octets that matter, cut at every place: same as whole, and as the slow reference.
@Test func splitAtEveryByteGivesTheSameBody() {
    let seed: UInt64 = 0x5eed_0002
    var random = SplitMix64(seed: seed)
    let alphabet: [UInt8] = [13, 10, 46, 46, 65, 13, 10, 0xe9]
    for round in 0..<3_000 {
        var input: [UInt8] = []
        for _ in 0..<Int(random.next() % 24) {
            // CRLF together is likelier, so that lines and ends occur.
            if random.next() % 3 == 0 { input += [13, 10] } else { input.append(alphabet[Int(random.next() % 8)]) }
        }
        input += [13, 10, 46, 13, 10]
        let whole = frame([input])
        let slow = reference(input)
        #expect(whole.ended == slow.ended && whole.used == slow.used, "seed \(seed) round \(round) \(input)")
        if whole.violation == nil {
            #expect(whole.content == slow.content, "seed \(seed) round \(round) \(input)")
            #expect(
                whole.content.split(separator: 10, omittingEmptySubsequences: false).filter { $0.first == 46 }.count
                    == whole.leadingDots, "seed \(seed) round \(round) \(input)")
        }
        let octets = frame(input.map { [$0] })
        #expect(octets == whole || whole.violation != nil, "seed \(seed) round \(round) \(input)")
        #expect(octets.used == whole.used && octets.violation == whole.violation, "seed \(seed) round \(round)")
        let place = Int(random.next() % UInt64(input.count))
        let two = frame([Array(input[..<place]), Array(input[place...])])
        #expect(two.used == whole.used && two.violation == whole.violation, "seed \(seed) round \(round)")
    }
}

@Test func largeBodyIsCutIntoPiecesOfBoundedSize() {
    var body = IncomingBody()
    body.begin(expected: 10)
    var framing = DataFraming(.dotted, normalizesBareLF: false)
    let line = Array((String(repeating: "x", count: 998) + "\r\n").utf8)
    _ = Array("Subject: x\r\n\r\n".utf8).withUnsafeBytes { framing.receive($0, into: &body) }
    var lengths: [Int] = []
    for _ in 0..<1_000 {
        _ = line.withUnsafeBytes { framing.receive($0, into: &body) }
        lengths += body.takePieces().map(\.readableBytes)
        #expect(body.heldBytes <= 2 * Limits.fragmentSize + IncomingBody.headroom)
    }
    #expect(body.isStreamed)
    #expect(lengths.first == IncomingBody.wholeMax + IncomingBody.headroom)
    #expect(lengths.dropFirst().allSatisfy { $0 == Limits.fragmentSize })
    #expect(body.contentLength == 14 + 1_000 * 1_000)
    #expect(lengths.reduce(0, +) - IncomingBody.headroom + body.takeRest().readableBytes == body.contentLength)
}

@Test func headerFieldsThatAreNoticed() {
    func watch(_ text: String) -> HeaderWatch {
        var watch = HeaderWatch()
        let octets = Array(text.utf8)
        for end in 1...octets.count { octets[..<end].withUnsafeBytes { watch.scan($0) } }
        return watch
    }
    let usual = watch(
        "RECEIVED: a\r\nReceived : b\r\nReceivedX: c\r\nDate: d\r\nMessage-Id: <1@x>\r\n\r\nReceived: no\r\n")
    #expect(usual.received == 2 && usual.hasDate && usual.messageID == Array("<1@x>".utf8) && usual.length == 71)
    let folded = watch("message-id:\r\n <2@x>\r\n more\r\nMessage-ID: <3@x>\r\n\r\n")
    #expect(folded.messageID == Array("<2@x>".utf8))
    let long = watch("Message-ID: <" + String(repeating: "m", count: 254) + ">\r\n\r\n")
    #expect(long.hasMessageID && long.messageID.isEmpty)
    #expect(!watch("X-Date: d\r\n Date: e\r\n\r\n").hasDate)
}
