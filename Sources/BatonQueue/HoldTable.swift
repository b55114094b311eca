// Suspensions in force, and selectors made ready for matching.
import BatonCore
import BatonModel

/// The hashes by which filters know senders.
enum SenderHash {
    /// Of the whole address, its domain in lower case.
    static func address(_ sender: MailAddress?) -> UInt64 {
        var hash = StableHash()
        guard let sender else { return hash.finish() }
        hash.combine(sender.localPart)
        hash.combine(UInt8(ascii: "@"))
        combineLowered(sender.domainBytes, &hash)
        return hash.finish()
    }

    /// Of its domain, in lower case without a trailing dot, as `Domain` has it.
    static func domain(_ sender: MailAddress?) -> UInt64 {
        var hash = StableHash()
        if let sender { combineLowered(sender.domainBytes, &hash) }
        return hash.finish()
    }

    static func domain(_ domain: Domain) -> UInt64 { StableHash.of(domain.bytes) }

    private static func combineLowered(_ bytes: ArraySlice<UInt8>, _ hash: inout StableHash) {
        var rest = bytes
        if rest.count > 1, rest.last == UInt8(ascii: ".") { rest = rest.dropLast() }
        for byte in rest { hash.combine(byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte) }
    }
}

/// A selector with its sender's hash computed once.
struct SelectorMatch: Sendable {
    let selector: QueueSelector
    private let hash: UInt64

    init(_ selector: QueueSelector) {
        self.selector = selector
        self.hash =
            switch selector {
            case .sender(let sender): SenderHash.address(sender)
            case .senderDomain(let domain): SenderHash.domain(domain)
            case .message, .domain, .site, .all: 0
            }
    }

    func matches(_ message: borrowing MessageEntry, domain: Domain, site: [UInt8]?) -> Bool {
        switch selector {
        case .all: true
        case .message(let id): message.id == id
        case .domain(let wanted): domain == wanted
        case .site(let name): site == name
        case .sender: message.senderHash == hash
        case .senderDomain: message.senderDomainHash == hash
        }
    }
}

/// At most `QueueLimits.holds`; one for each selector. Asked for every job on its way while there is any.
struct HoldTable: Sendable {
    struct Entry: Sendable {
        let number: UInt32
        var until: Instant?
        /// Its timer's slot; `none` without an end.
        var timer: UInt32
    }

    private(set) var entries: [QueueSelector: Entry] = [:]
    private var nextNumber: UInt32 = 1
    private var senders: Set<UInt64> = []
    private var senderDomains: Set<UInt64> = []
    private var hasAll = false
    private var hasMessages = false
    private var hasDomains = false
    private var hasSites = false

    var isEmpty: Bool { entries.isEmpty }
    var isFull: Bool { entries.count >= QueueLimits.holds }

    /// Adds or replaces; returns its number for the timer.
    mutating func set(_ selector: QueueSelector, until: Instant?, timer: UInt32, number: UInt32) {
        entries[selector] = Entry(number: number, until: until, timer: timer)
        rebuild()
    }

    mutating func takeNumber() -> UInt32 {
        defer { nextNumber &+= 1 }
        return nextNumber
    }

    @discardableResult
    mutating func remove(_ selector: QueueSelector) -> Entry? {
        defer { rebuild() }
        return entries.removeValue(forKey: selector)
    }

    func selector(number: UInt32) -> QueueSelector? { entries.first { $0.value.number == number }?.key }

    /// Verbs are rare and holds few, so the quick sets are simply made anew.
    private mutating func rebuild() {
        senders = []
        senderDomains = []
        (hasAll, hasMessages, hasDomains, hasSites) = (false, false, false, false)
        for selector in entries.keys {
            switch selector {
            case .all: hasAll = true
            case .message: hasMessages = true
            case .domain: hasDomains = true
            case .site: hasSites = true
            case .sender(let sender): senders.insert(SenderHash.address(sender))
            case .senderDomain(let domain): senderDomains.insert(SenderHash.domain(domain))
            }
        }
    }

    func holds(_ message: borrowing MessageEntry, domain: Domain, site: [UInt8]?) -> Bool {
        if hasAll { return true }
        if hasMessages, entries[.message(message.id)] != nil { return true }
        if hasDomains, entries[.domain(domain)] != nil { return true }
        if hasSites, let site, entries[.site(site)] != nil { return true }
        if !senders.isEmpty, senders.contains(message.senderHash) { return true }
        if senderDomains.isEmpty { return false }
        return senderDomains.contains(message.senderDomainHash)
    }
}
