// The header scanner, whole and split at every octet.
import BatonCore
import NIOCore
import Testing

@testable import BatonMail

private func scan(_ pieces: [some StringProtocol]) -> HeaderScanner {
    var scanner = HeaderScanner()
    for piece in pieces { scanner.scan(ByteBuffer(string: String(piece))) }
    return scanner
}

private let sample =
    "Received: from a\r\n\tby b;\r\n\tdate\r\nRECEIVED : from c\r\nX-Received: no\r\nReceived-SPF: no\r\n"
    + "date: today\r\nMessage-Id:\r\n <one@\r\n\texample.net>  \r\nMessage-ID: <two@x>\r\nno colon here\r\n"
    + "From: a@b\r\n\r\nReceived: in the body\r\n\r\nFrom: x\r\n"
private let sampleHeader = sample.utf8.count - "Received: in the body\r\n\r\nFrom: x\r\n".utf8.count

private func check(_ scanner: HeaderScanner) {
    #expect(scanner.isComplete)
    #expect(scanner.length == sampleHeader)
    #expect(scanner.receivedCount == 2)
    #expect(scanner.hasDate && scanner.hasFrom && scanner.hasMessageID)
    #expect(String(decoding: scanner.messageID, as: UTF8.self) == "<one@ example.net>")
}

@Test func headerMisreadWhole() { check(scan([sample])) }

@Test func headerMisreadWhenSplitAtAnyOctet() {
    let octets = Array(sample.utf8)
    for at in 1..<octets.count {
        var scanner = HeaderScanner()
        scanner.scan(ByteBuffer(bytes: octets[..<at]))
        scanner.scan(ByteBuffer(bytes: octets[at...]))
        check(scanner)
    }
    var single = HeaderScanner()
    for octet in octets { single.scan(ByteBuffer(bytes: [octet])) }
    check(single)
}

@Test func bareLineFeedEndsAHeader() {
    let scanner = scan(["A: b\n\nReceived: hidden\r\nDate: d\r\n\r\n"])
    #expect(scanner.length == 35)
    #expect(scanner.receivedCount == 0)
    #expect(scanner.hasDate)
    #expect(!scan(["A: b\n\n"]).isComplete)
    #expect(!scan(["A: b\r\n\rX"]).isComplete)
}

@Test func emptySectionAndNoSection() {
    #expect(scan(["\r\nbody"]).length == 2)
    #expect(scan(["\r\nbody"]).isComplete)
    let none = scan(["no header at all"])
    #expect(!none.isComplete)
    #expect(none.length == 16)
}

@Test func messageIDWithoutBound() {
    let scanner = scan(["Message-ID: <" + String(repeating: "x", count: 100_000), "\r\n\t\r\n\r\n"])
    #expect(scanner.messageID.count == HeaderScanner.messageIDOctets)
    #expect(scanner.isComplete)
}

@Test func endlessHeaderSection() {
    var scanner = HeaderScanner()
    let line = ByteBuffer(string: "X: " + String(repeating: "y", count: 1021))
    for _ in 0..<256 { scanner.scan(line) }
    #expect(!scanner.exceeds())
    scanner.scan(ByteBuffer(string: "z"))
    #expect(scanner.exceeds())
}
