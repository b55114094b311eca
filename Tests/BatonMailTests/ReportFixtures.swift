// Reports to test with, and Python's email package as an independent reader of them.
import BatonCore
import BatonModel
import Foundation
import NIOCore

@testable import BatonMail

let reportHost = ReportConfiguration(
    hostname: Array("relay1.example.net".utf8), postmaster: Array("postmaster@example.net".utf8))

func address(_ text: String) -> MailAddress {
    guard let address = MailAddress(text) else { fatalError("bad address in a test: \(text)") }
    return address
}

func envelope(
    sender: String = "sender@example.org", flags: EnvelopeFlags = [], envid: String = "",
    recipients: [EnvelopeRecipient] = [], body: ByteBuffer = ByteBuffer()
) -> Envelope {
    Envelope(
        id: MessageID(high: 0x019b_7a5f_0000_1234, low: 7), arrival: Instant(secondsSinceEpoch: 1_767_000_000),
        sender: address(sender), envid: Array(envid.utf8), flags: flags,
        messageIDField: Array("<orig@example.org>".utf8), recipients: recipients, traits: .measured(body))
}

func failed(
    _ recipient: EnvelopeRecipient, text: [UInt8] = Array("User unknown".utf8), remote: String = "mx1.example.com"
) -> DeliveryReport.Recipient {
    DeliveryReport.Recipient(
        recipient: recipient, action: .failed, status: EnhancedStatus(5, 1, 1),
        reply: SMTPReply(code: 550, status: EnhancedStatus(5, 1, 1), text: text, stage: .rcpt),
        remote: PeerName(name: Array(remote.utf8), address: Array("192.0.2.9".utf8)),
        lastAttempt: Instant(secondsSinceEpoch: 1_767_003_600))
}

func report(
    _ original: Envelope, _ recipients: [DeliveryReport.Recipient], returned: DeliveryReport.Returned = .nothing,
    kind: ReportSubject.Kind = .failure
) -> DeliveryReport {
    DeliveryReport(
        id: MessageID(high: 0x019b_7a5f_0000_9999, low: 42), kind: kind, at: Instant(secondsSinceEpoch: 1_767_003_601),
        original: original, recipients: recipients, returned: returned)
}

/// What Python makes of messages: one object per message.
struct ReadReport: Decodable {
    let headers: [[String]]
    let parts: [Part]
    let defects: [String]
    let boundaryParameter: String?
    let reportType: String?

    struct Part: Decodable {
        let type: String
        let text: String
        /// Fields of each block of a delivery-status part.
        let blocks: [[[String]]]
        let defects: [String]
    }

    func field(_ name: String) -> [String] {
        headers.filter { $0.first?.lowercased() == name.lowercased() }.compactMap(\.last)
    }
}

extension ReadReport.Part {
    func field(_ name: String, block: Int) -> [String] {
        guard blocks.indices.contains(block) else { return [] }
        return blocks[block].filter { $0.first?.lowercased() == name.lowercased() }.compactMap(\.last)
    }
}

private let reader = """
    import sys, json, base64, email, email.policy
    out = []
    for line in sys.stdin:
        m = email.message_from_bytes(base64.b64decode(line), policy=email.policy.compat32)
        def fields(x): return [[k, str(v)] for k, v in x.items()]
        parts = []
        payload = m.get_payload()
        if not isinstance(payload, list): payload = []
        for p in payload:
            inner = p.get_payload()
            blocks = [fields(b) for b in inner] if isinstance(inner, list) else []
            if p.get_content_type() == "message/global-delivery-status":
                rest = inner[0].get_payload(decode=True).replace(b"\\r\\n", b"\\n").strip()
                blocks += [fields(email.message_from_bytes(b)) for b in rest.split(b"\\n\\n") if b]
            raw = p.get_payload(decode=True)
            if raw is None and isinstance(inner, list): raw = b"".join(b.as_bytes() for b in inner)
            parts.append(dict(type=p.get_content_type(), text=(raw or b"").decode("utf-8", "replace"),
                blocks=blocks, defects=[type(d).__name__ for d in p.defects]))
        out.append(dict(headers=fields(m), parts=parts, defects=[type(d).__name__ for d in m.defects],
            boundaryParameter=m.get_param("boundary"), reportType=m.get_param("report-type")))
    sys.stdout.buffer.write(json.dumps(out).encode())
    """

/// Reads many messages by one run of python3.
func readByPython(_ messages: [ByteBuffer]) throws -> [ReadReport] {
    try JSONDecoder().decode([ReadReport].self, from: runPython(reader, messages))
}

/// Whom Mailman's bounce detectors find failed for good, and for now, in each message; nil where they are not installed.
func failuresByFlufl(_ messages: [ByteBuffer]) throws -> [Failures]? {
    let found = try runPython(detectors, messages)
    return found.isEmpty ? nil : try JSONDecoder().decode([Failures].self, from: found)
}

struct Failures: Decodable, Equatable {
    let permanent: [String]
    let temporary: [String]
}

private let detectors = """
    import sys, json, base64, email
    try: import flufl.bounce
    except ImportError: sys.exit()
    out = []
    for line in sys.stdin:
        temporary, permanent = flufl.bounce.all_failures(email.message_from_bytes(base64.b64decode(line)))
        out.append({"permanent": sorted(a.decode() for a in permanent), "temporary": sorted(a.decode() for a in temporary)})
    print(json.dumps(out))
    """

/// Whether there is a python3 at all; what it reads is not tested without it.
let hasPython: Bool = {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["python3", "-c", ""]
    guard (try? process.run()) != nil else { return false }
    process.waitUntilExit()
    return process.terminationStatus == 0
}()

private func runPython(_ program: String, _ messages: [ByteBuffer]) throws -> Data {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = ["python3", "-c", program]
    let input = Pipe()
    let output = Pipe()
    process.standardInput = input
    process.standardOutput = output
    try process.run()
    let lines = messages.map { Data($0.readableBytesView).base64EncodedString() }.joined(separator: "\n") + "\n"
    let writer = Thread { [handle = input.fileHandleForWriting] in
        handle.write(Data(lines.utf8))
        try? handle.close()
    }
    writer.start()
    let data = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return data
}
