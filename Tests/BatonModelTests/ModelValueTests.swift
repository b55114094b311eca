// Addresses, domains, status codes and replies as values.
import BatonCore
import BatonModel
import Testing

private func octets(_ text: String) -> [UInt8] { Array(text.utf8) }

@Test func addressWithControlOctetsIsNone() {
    for bad in ["a\r@b", "a\n@b", "a\u{0}@b", "a@b\r\n", "@b", "a@", "ab", ""] {
        #expect(MailAddress(bad) == nil, "\(bad)")
    }
}

@Test func addressIsSplitAtItsLastAt() {
    let address = MailAddress("\"x@y\"@Example.ORG")
    #expect(address.map { Array($0.localPart) } == octets("\"x@y\""))
    #expect(address?.domain == Domain("example.org"))
    #expect(address?.description == "\"x@y\"@Example.ORG")
}

@Test func addressLongerThanAPathIsNone() {
    let local = String(repeating: "a", count: 255)
    #expect(MailAddress(localPart: octets(local), domain: octets(String(repeating: "b", count: 256))) != nil)
    #expect(MailAddress(localPart: octets(local), domain: octets(String(repeating: "b", count: 257))) == nil)
}

@Test func domainIsLoweredInASCIIOnly() {
    #expect(Domain("EXAMPLE.org.") == Domain("example.ORG"))
    #expect(Domain("Ä.example").description == "Ä.example")
    #expect(Domain(".").bytes == [UInt8(ascii: ".")])
    #expect(Domain("").bytes.isEmpty)
    #expect(Domain("[192.0.2.1]").isLiteral)
    #expect(Domain("ä.example").isInternational && !Domain("a.example").isInternational)
    #expect(Domain("EXAMPLE.org").stableHash == StableHash.of(octets("example.org")))
}

@Test func enhancedStatusAtTheStartOfAText() {
    func read(_ text: String) -> String? { EnhancedStatus.parse(octets(text)).map { "\($0.status)/\($0.length)" } }
    #expect(read("2.1.5 ok") == "2.1.5/6")
    #expect(read("5.7.999") == "5.7.999/7")
    #expect(read("4.4.1\tx") == "4.4.1/6")
    for bad in [
        "", "2.1", "2.1.", "3.1.1 x", "2.1.1.1 x", "2.1000.1 x", "2..1", ".1.1", "2.1.5ok", "22.1.1 x", "2.1.-1",
        " 2.1.1",
    ] {
        #expect(read(bad) == nil, "\(bad)")
    }
}

@Test func replyTextOverItsBoundIsCutWhenKept() {
    let long = SMTPReply(
        code: 550, status: nil, text: [UInt8](repeating: 0x61, count: Limits.keptReplyOctets + 1), stage: .rcpt)
    #expect(long.kept.text.count == Limits.keptReplyOctets)
    #expect(long.effectiveStatus == EnhancedStatus(5, 0, 0))
    #expect(SMTPReply(code: 0, status: nil, text: [], stage: .connect).effectiveStatus == EnhancedStatus(4, 0, 0))
}

@Test func notifyWithoutAWordMeansFailures() {
    #expect(NotifyFlags().wantsFailure)
    #expect(!NotifyFlags.never.wantsFailure)
    #expect(!NotifyFlags.success.wantsFailure)
    #expect(!NotifyFlags().wantsDelay && !NotifyFlags().wantsSuccess)
}

@Test func verdictsThatEndAJob() {
    let now = Instant.epoch
    let verdicts: [(OutcomeVerdict, Bool)] = [
        (.delivered, true), (.bounced, true), (.expired, true), (.adminBounced, true), (.withdrawn, true),
        (.deferred(until: now), false),
        (.inDoubt(until: now), false), (.delayNoticeSent, false),
    ]
    for (verdict, final) in verdicts { #expect(verdict.isFinal == final) }
}
