// One context of libunbound, as the resolver's thread uses it.
import BatonCore
import CUnbound
import Glibc

/// A libunbound context in asynchronous mode: it resolves on a background thread of its own, and `process` brings results.
///
/// Not thread-safe: made by the resolver's owner, then used by the resolver's thread alone.
final class UnboundContext: @unchecked Sendable {
    // @unchecked: handed over once, to the thread that uses it from then on.
    private let context: OpaquePointer
    private var results: [(id: UInt64, answer: DNSAnswer)] = []
    private var slots: [UInt64: Slot] = [:]

    /// What libunbound gives back with a result.
    private final class Slot {
        unowned let owner: UnboundContext
        let id: UInt64
        let type: RecordType
        var asyncID: Int32 = 0

        init(owner: UnboundContext, id: UInt64, type: RecordType) {
            self.owner = owner
            self.id = id
            self.type = type
        }
    }

    /// Throws where a server or the trust anchor is not to libunbound's liking.
    init(servers: [ResolverServer], trustAnchor: String?) throws(ResolverError) {
        guard let made = ub_ctx_create() else { throw ResolverError(text: "libunbound: out of memory") }
        self.context = made
        _ = ub_ctx_debugout(made, nil)
        // Look-ups of servers on loopback, quick recovery after an outage of the resolver, and little memory; see unbound.conf(5).
        let options: [(String, String)] = [
            ("do-not-query-localhost:", "no"), ("infra-host-ttl:", "15"), ("infra-keep-probing:", "yes"),
            ("infra-cache-max-rtt:", "2000"), ("msg-cache-size:", "16m"), ("rrset-cache-size:", "32m"),
            ("cache-max-negative-ttl:", "900"), ("num-queries-per-thread:", "2048"), ("outgoing-range:", "1024"),
            ("harden-below-nxdomain:", "yes"), ("use-caps-for-id:", "no"), ("qname-minimisation:", "no"),
        ]
        for (name, value) in options {
            // An option that this release of libunbound does not know is no reason not to resolve.
            _ = ub_ctx_set_option(made, name, value)
        }
        for server in servers {
            try check(ub_ctx_set_fwd(made, server.unboundText), "server \(server)")
        }
        if let trustAnchor { try check(ub_ctx_add_ta_file(made, trustAnchor), "trust anchor \(trustAnchor)") }
        try check(ub_ctx_async(made, 1), "threads")
        // libunbound answers names under test. with NXDOMAIN by itself; people's test zones live there. This also finishes
        // the configuration, so that an unreadable trust anchor shows here.
        try check(ub_ctx_zone_remove(made, "test."), trustAnchor.map { "trust anchor \($0)" } ?? "configuration")
    }

    deinit {
        ub_ctx_delete(context)
    }

    private func check(_ result: Int32, _ what: String) throws(ResolverError) {
        guard result != 0 else { return }
        let reason = ub_strerror(result).map { String(cString: $0) } ?? "error \(result)"
        throw ResolverError(text: "libunbound, \(what): \(reason)")
    }

    /// Readable when `process` has something to do.
    var descriptor: Int32 { ub_fd(context) }

    /// Begins a look-up; false where libunbound refuses it (out of memory or threads).
    func begin(_ question: DNSQuestion, id: UInt64) -> Bool {
        let slot = Slot(owner: self, id: id, type: question.type)
        // `slots` keeps the slot alive until its result or its cancellation.
        let pointer = Unmanaged.passUnretained(slot).toOpaque()
        let name = String(decoding: question.name, as: UTF8.self) + "."
        slots[id] = slot
        var asyncID: Int32 = 0
        let result = ub_resolve_async(
            context, name, Int32(question.type.rawValue), 1, pointer, unboundAnswered, &asyncID)
        slot.asyncID = asyncID
        if result != 0 { slots[id] = nil }
        return result == 0
    }

    /// Gives a look-up up: no result comes for it any more.
    func cancel(_ id: UInt64) {
        guard let slot = slots[id] else { return }
        // libunbound refuses only what it has already delivered, and that has left `slots`.
        if ub_cancel(context, slot.asyncID) == 0 { slots[id] = nil }
    }

    /// Results that have come; does not wait.
    func process() -> [(id: UInt64, answer: DNSAnswer)] {
        _ = ub_process(context)
        var taken: [(id: UInt64, answer: DNSAnswer)] = []
        swap(&taken, &results)
        return taken
    }

    fileprivate static func finished(_ pointer: UnsafeMutableRawPointer?, _ result: UnsafeMutablePointer<ub_result>?) {
        defer { ub_resolve_free(result) }
        guard let pointer else { return }
        let slot = Unmanaged<Slot>.fromOpaque(pointer).takeUnretainedValue()
        let owner = slot.owner
        guard owner.slots.removeValue(forKey: slot.id) != nil else { return }
        let answer = result.map { Self.answer(from: $0.pointee, slot.type) } ?? DNSAnswer(.failed(.refused(rcode: 2)))
        owner.results.append((slot.id, answer))
    }

    private static func answer(from result: ub_result, _ type: RecordType) -> DNSAnswer {
        if result.bogus != 0 { return DNSAnswer(.failed(.bogus)) }
        let ttl = result.ttl > 0 ? UInt32(result.ttl) : 0
        let secure = result.secure != 0
        if result.havedata != 0 {
            let content = RecordData.content(records(of: result), of: type)
            return DNSAnswer(content, ttl: ttl, secure: secure)
        }
        // 0 means that the negative answer came without an SOA, so without a time to believe it.
        let negativeTTL = ttl == 0 ? nil : ttl
        if result.nxdomain != 0 { return DNSAnswer(.noSuchName, ttl: negativeTTL, secure: secure) }
        if result.rcode != 0 {
            return DNSAnswer(.failed(.refused(rcode: UInt8(truncatingIfNeeded: result.rcode))))
        }
        return DNSAnswer(.noData, ttl: negativeTTL, secure: secure)
    }

    /// The octets of each record: libunbound's own parse, whose array ends with a null pointer.
    private static func records(of result: ub_result) -> [[UInt8]] {
        guard let data = result.data, let lengths = result.len else { return [] }
        var records: [[UInt8]] = []
        var index = 0
        while let item = data[index], index < 4096 {
            let length = Int(lengths[index])
            if length >= 0, length <= 65535 {
                records.append(Array(UnsafeRawBufferPointer(start: item, count: length)))
            }
            index += 1
        }
        return records
    }
}

/// A file-scope function: libunbound calls it from `ub_process`, on the resolver's thread.
private func unboundAnswered(
    _ context: UnsafeMutableRawPointer?, _ error: Int32, _ result: UnsafeMutablePointer<ub_result>?
) {
    UnboundContext.finished(context, result)
}
