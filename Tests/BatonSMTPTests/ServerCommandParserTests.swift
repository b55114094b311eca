// Command lines of clients: well-formed, odd, and hostile.
import BatonCore
import BatonModel
import Testing

@testable import BatonSMTP

private func parse(_ line: String) -> Command {
    Array(line.utf8).withUnsafeBytes { CommandParser.parse($0) }
}

private func sender(_ line: String) -> String? {
    guard case .mail(let sender, _) = parse(line) else { return nil }
    return sender?.description ?? ""
}

private func recipient(_ line: String) -> String? {
    guard case .rcpt(let recipient, _) = parse(line) else { return nil }
    return recipient?.description ?? "postmaster"
}

@Test func verbInAnyCaseAndTrailingBlanks() {
    #expect(parse("data") == .data)
    #expect(parse("DaTa  \t") == .data)
    #expect(parse("rset ") == .rset)
    #expect(parse("QUIT") == .quit)
    #expect(parse("noop whatever") == .noop)
    #expect(parse("data x") == .malformed(.other, .argument))
    #expect(parse("DATAX") == .unknown)
    #expect(parse("DAT") == .unknown)
    #expect(parse("") == .unknown)
    #expect(parse("vrfy") == .malformed(.other, .argument))
    #expect(parse("vrfy x") == .vrfy)
    #expect(parse("StartTLS") == .starttls)
    #expect(parse("GET / HTTP/1.1") == .http)
    #expect(parse("POST / HTTP/1.1") == .http)
}

@Test func greetingArgument() {
    #expect(parse("EHLO mail.example") == .ehlo(Array("mail.example".utf8)))
    #expect(parse("HELO [192.0.2.1] ") == .helo(Array("[192.0.2.1]".utf8)))
    #expect(parse("EHLO [IPv6:2001:db8::1]") == .ehlo(Array("[IPv6:2001:db8::1]".utf8)))
    #expect(parse("EHLO") == .malformed(.greeting, .argument))
    #expect(parse("EHLO  ") == .malformed(.greeting, .argument))
    #expect(parse("EHLO a b") == .malformed(.greeting, .argument))
    #expect(parse("EHLO [192.0.2]") == .malformed(.greeting, .argument))
    #expect(parse("EHLO [IPv6:192.0.2.1]") == .malformed(.greeting, .argument))
    #expect(parse("EHLO " + String(repeating: "a", count: 256)) == .malformed(.greeting, .tooLong))
}

@Test(arguments: [
    ("MAIL FROM:<a@b.test>", "a@b.test"), ("mail from:<a@b.test>", "a@b.test"), ("MAIL FROM: <a@b.test>", "a@b.test"),
    ("MAIL FROM:<>", ""), ("MAIL FROM:<> ", ""), ("MAIL FROM:<@x.test,@y.test:a@b.test>", "a@b.test"),
    ("MAIL FROM:<\"a b\\\"c\"@b.test>", "\"a b\\\"c\"@b.test"), ("MAIL FROM:<A.B@b.test.>", "A.B@b.test"),
    ("MAIL FROM:<a%x@b.test>", "a%x@b.test"), ("MAIL FROM:<x!a@b.test>", "x!a@b.test"),
    ("MAIL FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]"), ("MAIL FROM:<a@[IPv6:::1]>", "a@[IPv6:::1]"),
    ("MAIL FROM:<a@b_c.test>", "a@b_c.test"), ("MAIL FROM:<é@bücher.test> SMTPUTF8", "é@bücher.test"),
])
func senderThatIsTaken(line: String, address: String) { #expect(sender(line) == address) }

@Test(arguments: [
    "MAIL FROM:a@b.test", "MAIL FROM:<a@b.test", "MAIL FROM:<a@>", "MAIL FROM:<@b.test>", "MAIL FROM:<a>",
    "MAIL FROM:<.a@b.test>", "MAIL FROM:<a.@b.test>", "MAIL FROM:<a..c@b.test>", "MAIL FROM:<a b@c.test>",
    "MAIL FROM:<a@b..test>", "MAIL FROM:<a@.test>", "MAIL FROM:<a@-b.test>", "MAIL FROM:<a@b-.test>",
    "MAIL FROM:<a@b.test>x", "MAIL FROM:<a@[1.2.3]>", "MAIL FROM:<a@[x:1]>", "MAIL FROM:<\"a@b.test>",
    "MAIL FROM:<a@@b.test>", "MAIL FROM:<@x.test:>", "MAIL FROM:<postmaster>", "MAIL TO:<a@b.test>", "MAIL", "MAIL ",
    "MAIL FROM:", "MAIL FROM:<\"a\"b@c.test>", "MAIL FROM:<<a@b.test>>", "MAIL FROM:<a@b.test> BODY=BINARYMIME",
    "MAIL FROM:<é@b.test>",
])
func senderThatIsRefused(line: String) {
    guard case .malformed(.mail, _) = parse(line) else {
        Issue.record("taken: \(parse(line))")
        return
    }
}

@Test func invalidUTF8InAnAddress() {
    let line = Array("RCPT TO:<a".utf8) + [0xff] + Array("@b.test>".utf8)
    #expect(line.withUnsafeBytes { CommandParser.parse($0) } == .malformed(.rcpt, .path))
}

@Test func lengthsOfPathParts() {
    let local64 = String(repeating: "l", count: 64)
    #expect(recipient("RCPT TO:<\(local64)@b.test>") != nil)
    #expect(parse("RCPT TO:<\(local64)l@b.test>") == .malformed(.rcpt, .tooLong))
    let label63 = String(repeating: "d", count: 63)
    #expect(recipient("RCPT TO:<a@\(label63).test>") != nil)
    #expect(parse("RCPT TO:<a@\(label63)d.test>") == .malformed(.rcpt, .tooLong))
    let domain = Array(repeating: label63, count: 3).joined(separator: ".")
    // 1 + 1 + domain + 2 brackets = 256 is the most (RFC 5321 4.5.3.1.3).
    let fits = domain + "." + String(repeating: "e", count: 256 - 4 - domain.count - 1)
    #expect(recipient("RCPT TO:<a@\(fits)>") != nil)
    #expect(parse("RCPT TO:<a@\(fits)e>") == .malformed(.rcpt, .tooLong))
}

@Test func barePostmasterInAnyCase() {
    #expect(recipient("RCPT TO:<PostMaster>") == "postmaster")
    #expect(recipient("RCPT TO:<postmaster@b.test>") == "postmaster@b.test")
    #expect(parse("RCPT TO:<postmasterx>") == .malformed(.rcpt, .path))
    #expect(parse("RCPT TO:<>") == .malformed(.rcpt, .path))
}

@Test func mailParameters() {
    guard
        case .mail(_, let parameters) = parse(
            "MAIL FROM:<a@b.test> size=1000 BODY=8bitmime SMTPUTF8 RET=HDRS ENVID=QQ+2B314159")
    else {
        Issue.record("refused")
        return
    }
    #expect(parameters.size == 1000)
    #expect(parameters.body == .eightBitMIME)
    #expect(parameters.smtpUTF8)
    #expect(parameters.returnContent == .headers)
    #expect(parameters.envid == Array("QQ+2B314159".utf8))
}

@Test(arguments: [
    "SIZE=", "SIZE=x", "SIZE=123456789012345678901", "SIZE", "SIZE=1 SIZE=1", "RET=ALL", "RET=FULL RET=HDRS",
    "ENVID=a=b",
    "ENVID=+", "ENVID=+2b", "ENVID=+0D", "ENVID=+0A", "ENVID=+00", "SMTPUTF8=1", "BODY=7BIT BODY=8BITMIME", "=", "-A=1",
])
func mailParameterOfWrongForm(parameter: String) {
    #expect(parse("MAIL FROM:<a@b.test> \(parameter)") == .malformed(.mail, .argument))
}

@Test func mailParameterNotOffered() {
    #expect(parse("MAIL FROM:<a@b.test> XYZ=1") == .malformed(.mail, .unknownParameter))
    #expect(parse("MAIL FROM:<a@b.test> REQUIRETLS") == .malformed(.mail, .unknownParameter))
    #expect(parse("MAIL FROM:<a@b.test> AUTH=<>") == .malformed(.mail, .unknownParameter))
    #expect(parse("RCPT TO:<a@b.test> SIZE=1") == .malformed(.rcpt, .unknownParameter))
}

@Test func numberBeyondSixtyThreeBitsSaturates() {
    guard case .mail(_, let parameters) = parse("MAIL FROM:<> SIZE=99999999999999999999") else {
        Issue.record("refused")
        return
    }
    #expect(parameters.size == .max)
}

@Test func dsnParametersOfRcpt() {
    guard case .rcpt(_, let all) = parse("RCPT TO:<a@b.test> NOTIFY=SUCCESS,delay ORCPT=rfc822;a+2Bb@c.test") else {
        Issue.record("refused")
        return
    }
    #expect(all.notify == [.success, .delay])
    #expect(all.originalRecipient == Array("rfc822;a+2Bb@c.test".utf8))
    guard case .rcpt(_, let never) = parse("RCPT TO:<a@b.test> NOTIFY=NEVER") else {
        Issue.record("refused")
        return
    }
    #expect(never.notify == .never)
    guard case .rcpt(_, let utf8) = parse("RCPT TO:<a@b.test> ORCPT=utf-8;é@ü.test") else {
        Issue.record("refused")
        return
    }
    #expect(!utf8.originalRecipient.isEmpty)
}

@Test(arguments: [
    "NOTIFY=NEVER,SUCCESS", "NOTIFY=SUCCESS,SUCCESS", "NOTIFY=", "NOTIFY=SUCCESS,", "NOTIFY=X",
    "NOTIFY=NEVER NOTIFY=NEVER",
    "ORCPT=a@b.test", "ORCPT=;a", "ORCPT=rfc822;", "ORCPT=rfc822;a+2", "ORCPT=rfc822;+0D+0Ax", "ORCPT=rfc822;é",
])
func rcptParameterOfWrongForm(parameter: String) {
    #expect(parse("RCPT TO:<a@b.test> \(parameter)") == .malformed(.rcpt, .argument))
}

@Test func overlongEnvidAndOrcpt() {
    let hundred = String(repeating: "e", count: 100)
    guard case .mail = parse("MAIL FROM:<> ENVID=\(hundred)") else {
        Issue.record("100 characters refused")
        return
    }
    #expect(parse("MAIL FROM:<> ENVID=\(hundred)e") == .malformed(.mail, .tooLong))
    let orcpt = "rfc822;" + String(repeating: "o", count: 493)
    guard case .rcpt = parse("RCPT TO:<a@b.test> ORCPT=\(orcpt)") else {
        Issue.record("500 characters refused")
        return
    }
    #expect(parse("RCPT TO:<a@b.test> ORCPT=\(orcpt)o") == .malformed(.rcpt, .tooLong))
}

@Test func bdatForms() {
    #expect(parse("BDAT 10") == .bdat(size: 10, last: false))
    #expect(parse("bdat 0 last ") == .bdat(size: 0, last: true))
    #expect(parse("BDAT") == .malformed(.bdat, .argument))
    #expect(parse("BDAT -1") == .malformed(.bdat, .argument))
    #expect(parse("BDAT 1 FIRST") == .malformed(.bdat, .argument))
    #expect(parse("BDAT 1 LAST x") == .malformed(.bdat, .argument))
}

/// Random octets and mutated commands: no trap, and never an address with a line end in it.
@Test func randomCommandLines() {
    let seed: UInt64 = 0x5eed_0001
    var random = SplitMix64(seed: seed)
    let bases = [
        "MAIL FROM:<\"a b\"@[IPv6:2001:db8::1]> SIZE=10 ENVID=a+2B RET=FULL", "RCPT TO:<@a,@b:c@d.test> NOTIFY=DELAY",
        "BDAT 12345 LAST", "EHLO [192.0.2.1]",
    ].map { Array($0.utf8) }
    for round in 0..<20_000 {
        var line = bases[Int(random.next() % UInt64(bases.count))]
        for _ in 0..<Int(random.next() % 4) where !line.isEmpty {
            let place = Int(random.next() % UInt64(line.count))
            switch random.next() % 3 {
            case 0: line[place] = UInt8(truncatingIfNeeded: random.next())
            case 1: line.remove(at: place)
            default: line.insert(UInt8(truncatingIfNeeded: random.next()), at: place)
            }
        }
        let command = line.withUnsafeBytes { CommandParser.parse($0) }
        if case .mail(let address?, _) = command {
            #expect(!address.bytes.contains { $0 < 0x20 }, "seed \(seed) round \(round)")
        }
        if case .rcpt(let address?, _) = command {
            #expect(!address.bytes.contains { $0 < 0x20 }, "seed \(seed) round \(round)")
        }
    }
}
