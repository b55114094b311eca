// Fuzz entries for addresses, domains, DNS records and header sections.
import BatonCore
import BatonDNS
import BatonMail
import BatonModel
import NIOCore

@testable import BatonSMTP

@Sendable func fuzzAddresses(_ input: [UInt8]) throws {
    // As a path of MAIL and RCPT.
    let clean = input.filter { $0 != 0 && $0 != 0x0d && $0 != 0x0a }
    for verb in ["MAIL FROM", "RCPT TO"] {
        let line = Array("\(verb):<".utf8) + clean.prefix(600) + Array("> SMTPUTF8".utf8)
        switch line.withUnsafeBytes({ CommandParser.parse($0) }) {
        case .mail(let address?, _), .rcpt(let address?, _): try check(address, verb)
        default: break
        }
    }
    if let address = MailAddress(input) {
        try hold(address.bytes == input, "an address that changes")
        try hold(Array(address.localPart) + [0x40] + Array(address.domainBytes) == input, "parts that do not add up")
    }
    // As a domain to look up.
    if let name = DomainName.lookup(Domain(input)) {
        try hold(!name.isEmpty && name.count <= DomainName.textOctets, "name of \(name.count)")
        try hold(DomainName.host(name) == name, "a name that changes")
        try hold(DomainName.lookup(Domain(name)) == name, "a name that changes when looked up again")
    }
    if let address = DomainName.literal(input) { try hold(IPAddress(address.description) == address, "\(address)") }
    let text = String(decoding: input, as: UTF8.self)
    if let address = IPAddress(text) { try hold(IPAddress(address.description) == address, "\(address)") }
    if let block = AddressBlock(text) { try hold(block.contains(block.base), "\(block) does not hold its base") }
    if let server = ResolverServer(text) { try hold(ResolverServer(server.description) == server, "\(server)") }
    if let id = MessageID(text: input) { try hold(MessageID(text: id.textBytes) == id, "\(id)") }
    if let (status, length) = EnhancedStatus.parse(input) {
        try hold(length <= input.count && [2, 4, 5].contains(status.classDigit), "\(status)")
    }
    let line = HostileText.line(input)
    try hold(!line.contains { $0 < 0x20 || $0 >= 0x7f }, "a control octet on one line")
    _ = HostileText.fromXtext(input)
    _ = HostileText.escapedAddress(input)
}

/// Records as the resolver gives them: each with its length in front.
@Sendable func fuzzDNS(_ input: [UInt8]) throws {
    guard let first = input.first else { return }
    let type: RecordType =
        switch first % 3 {
        case 0: .a
        case 1: .aaaa
        default: .mx
        }
    var records: [[UInt8]] = []
    var rest = input.dropFirst()
    while let length = rest.popFirst() {
        records.append(Array(rest.prefix(Int(length))))
        rest = rest.dropFirst(Int(length))
    }
    switch RecordData.content(records, of: type) {
    case .addresses(let found):
        try hold(found.count <= DNSLimits.addressRecords && Set(found).count == found.count, "\(found.count) addresses")
    case .exchangers(let found):
        try hold(!found.isEmpty && found.count <= DNSLimits.mxRecords, "\(found.count) exchangers")
        for record in found {
            guard case .host(let name) = record.exchange else { continue }
            try hold(DomainName.host(name) == name, "a host that is none")
        }
        var random = SplitMix64(seed: UInt64(first))
        let settings = PlanSettings(ownNames: [Array("us.test".utf8)])
        if case .candidates(let chosen) = MXSelection.of(found, settings: settings, using: &random) {
            try hold(!chosen.isEmpty && Set(chosen.map(\.name)).count == chosen.count, "a candidate twice")
            try hold(zip(chosen, chosen.dropFirst()).allSatisfy { $0.preference <= $1.preference }, "out of order")
        }
    case .noData: try hold(records.isEmpty, "records overlooked")
    case .failed(let why): try hold(why == .malformed, "\(why)")
    case .noSuchName, .other: throw Finding(description: "an answer of another kind")
    }
}

private struct SeenHeader: Equatable {
    var length = 0
    var isComplete = false
    var received = 0
    var fields = [false, false, false]
    var messageID: [UInt8] = []

    init(_ scanner: HeaderScanner) {
        length = scanner.length
        isComplete = scanner.isComplete
        received = scanner.receivedCount
        fields = [scanner.hasDate, scanner.hasMessageID, scanner.hasFrom]
        messageID = scanner.messageID
    }
}

@Sendable func fuzzHeaders(_ input: [UInt8]) throws {
    guard let first = input.first else { return }
    let stream = Array(input.dropFirst())
    var whole = HeaderScanner()
    stream.withUnsafeBytes { whole.scan($0) }
    var split = HeaderScanner()
    for piece in cut(stream, seed: first) { piece.withUnsafeBytes { split.scan($0) } }
    try hold(SeenHeader(whole) == SeenHeader(split), "cut otherwise, the header differs")
    try hold(whole.length <= stream.count, "longer than it is")
    try hold(whole.messageID.count <= HeaderScanner.messageIDOctets, "a long Message-ID")
    var watch = HeaderWatch()
    stream.withUnsafeBytes { watch.scan($0) }
    var grown = HeaderWatch()
    var soFar: [UInt8] = []
    for piece in cut(stream, seed: first) {
        soFar += piece
        soFar.withUnsafeBytes { grown.scan($0) }
    }
    try hold(
        watch.length == grown.length && watch.received == grown.received && watch.messageID == grown.messageID
            && watch.hasDate == grown.hasDate && watch.hasMessageID == grown.hasMessageID,
        "cut otherwise, the watched header differs")
}
