// Requests to etcd's JSON gateway, and its answers read: names, omitted fields and all.
import BatonCore

/// Paths of the gateway, from 3.4 on.
enum EtcdPath: String, Sendable {
    case range = "/v3/kv/range"
    case transaction = "/v3/kv/txn"
    case grant = "/v3/lease/grant"
    case keepAlive = "/v3/lease/keepalive"
    case revoke = "/v3/lease/revoke"
    case watch = "/v3/watch"
    case authenticate = "/v3/auth/authenticate"
}

/// Bodies of requests. 64-bit numbers are written as strings.
enum EtcdRequest {
    private static func octets(_ bytes: [UInt8]) -> String { "\"\(Base64.encode(bytes))\"" }

    static func key(_ key: ControlKey) -> String { #"{"key":\#(octets(key.bytes))}"# }

    /// - Parameter from: where the page begins.
    static func page(
        from: ControlKey, end: ControlKey, at revision: ControlRevision?, limit: Int
    ) -> String {
        let past = revision.map { #","revision":"\#($0)""# } ?? ""
        return #"{"key":\#(octets(from.bytes)),"range_end":\#(octets(end.bytes)),"limit":"\#(limit)"\#(past)}"#
    }

    static func transaction(_ transaction: ControlTransaction) -> String {
        let compare = transaction.comparisons.map { comparison in
            let key = octets(comparison.key.bytes)
            switch comparison {
            case .absent: return #"{"key":\#(key),"target":"CREATE","result":"EQUAL","create_revision":"0"}"#
            case .modified(_, let revision):
                return #"{"key":\#(key),"target":"MOD","result":"EQUAL","mod_revision":"\#(revision)"}"#
            case .created(_, let revision):
                return #"{"key":\#(key),"target":"CREATE","result":"EQUAL","create_revision":"\#(revision)"}"#
            }
        }
        let success = transaction.writes.map { write in
            switch write {
            case .put(let key, let value, let lease):
                let under = lease.map { #","lease":"\#($0.value)""# } ?? ""
                return #"{"request_put":{"key":\#(octets(key.bytes)),"value":\#(octets(value))\#(under)}}"#
            case .delete(let key): return #"{"request_delete_range":{"key":\#(octets(key.bytes))}}"#
            }
        }
        let failure = Set(transaction.comparisons.map(\.key)).sorted().map { #"{"request_range":\#(key($0))}"# }
        return #"{"compare":[\#(list(compare))],"success":[\#(list(success))],"failure":[\#(list(failure))]}"#
    }

    private static func list(_ parts: [String]) -> String { parts.joined(separator: ",") }

    static func grant(_ id: ControlLeaseID, seconds: Int64) -> String { #"{"ID":"\#(id.value)","TTL":"\#(seconds)"}"# }

    static func lease(_ id: ControlLeaseID) -> String { #"{"ID":"\#(id.value)"}"# }

    static func watch(_ prefix: ControlKey, end: ControlKey, from revision: ControlRevision) -> String {
        let range = #""key":\#(octets(prefix.bytes)),"range_end":\#(octets(end.bytes))"#
        return #"{"create_request":{\#(range),"start_revision":"\#(revision)","progress_notify":true}}"#
    }

    static func authenticate(_ user: String, _ password: String) -> String {
        #"{"name":\#(JSONValue.quoted(user)),"password":\#(JSONValue.quoted(password))}"#
    }
}

/// Answers, as far as they are used. Each reader gives nil for what is not an answer of its kind.
enum EtcdAnswer {
    /// Zero fields are omitted; a header without a revision is one of a cancelled watch.
    static func header(_ json: JSONValue) -> ControlHeader? {
        guard let header = json["header"], let store = header["cluster_id"]?.uint64 else { return nil }
        return ControlHeader(store: store, revision: header["revision"]?.int64 ?? 0)
    }

    static func entry(_ json: JSONValue) -> ControlEntry? {
        guard let key = json["key"]?.octets, let created = json["create_revision"]?.int64,
            let modified = json["mod_revision"]?.int64, created > 0, modified >= created
        else { return nil }
        // An empty value and no lease are omitted.
        var value: [UInt8] = []
        if let given = json["value"] {
            guard let octets = given.octets else { return nil }
            value = octets
        }
        let lease = json["lease"]?.int64 ?? 0
        return ControlEntry(
            key: ControlKey(bytes: key), value: value, created: created, modified: modified,
            lease: lease == 0 ? nil : ControlLeaseID(value: lease))
    }

    private static func entries(_ json: JSONValue) -> [ControlEntry]? {
        let found = json["kvs"]?.elements ?? []
        let entries = found.compactMap(entry)
        return entries.count == found.count ? entries : nil
    }

    static func range(_ json: JSONValue) -> (header: ControlHeader, entries: [ControlEntry], more: Bool)? {
        guard let header = header(json), header.revision > 0, let entries = entries(json) else { return nil }
        return (header, entries, json["more"]?.isTrue ?? false)
    }

    static func transaction(_ json: JSONValue) -> ControlCommit? {
        guard let header = header(json), header.revision > 0 else { return nil }
        // A transaction whose comparisons failed has no "succeeded".
        if json["succeeded"]?.isTrue ?? false { return .committed(header) }
        guard json["responses"] != nil else { return nil }
        var current: [ControlEntry] = []
        for response in json["responses"]?.elements ?? [] {
            guard let range = response["response_range"], let entries = entries(range) else { return nil }
            current += entries
        }
        return .conflict(header, current: current)
    }

    static func grant(_ json: JSONValue) -> ControlLease? {
        guard let id = json["ID"]?.int64, id != 0, let ttl = json["TTL"]?.int64, ttl > 0 else { return nil }
        return ControlLease(id: ControlLeaseID(value: id), ttl: .seconds(ttl))
    }

    /// The first line of a stream. A dead lease's answer is one without a TTL.
    static func keepAlive(_ json: JSONValue, _ lease: ControlLeaseID) -> TimeSpan?? {
        guard let result = json["result"], header(result) != nil, result["ID"]?.int64 == lease.value else { return nil }
        guard let ttl = result["TTL"]?.int64, ttl > 0 else { return .some(nil) }
        return .some(.seconds(ttl))
    }

    /// A token as it goes into a header: visible ASCII of a bounded length.
    static func token(_ json: JSONValue) -> String? {
        guard let token = json["token"]?.text, !token.isEmpty, token.utf8.count <= 8192,
            token.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f })
        else { return nil }
        return token
    }

    /// A line of a watch.
    enum WatchLine: Sendable {
        case created(ControlHeader)
        case changes(ControlHeader, [ControlChange])
        /// Nothing happened up to the header's revision.
        case progress(ControlHeader)
        /// `compacted`: what was asked for is gone.
        case cancelled(compacted: Bool, String)
        case error(EtcdError)
    }

    static func watchLine(_ json: JSONValue) -> WatchLine? {
        if let error = json["error"] { return .error(EtcdError(stream: error) ?? EtcdError(code: 2, text: "")) }
        guard let result = json["result"], let header = header(result) else { return nil }
        let compact = result["compact_revision"]?.int64 ?? 0
        if result["canceled"]?.isTrue ?? false {
            return .cancelled(compacted: compact > 0, result["cancel_reason"]?.text ?? "")
        }
        if result["created"]?.isTrue ?? false { return .created(header) }
        let found = result["events"]?.elements ?? []
        guard !found.isEmpty else { return .progress(header) }
        let changes = found.compactMap(change)
        return changes.count == found.count ? .changes(header, changes) : nil
    }

    /// A put has no type; a deletion has one, and of its entry only key and revision.
    private static func change(_ json: JSONValue) -> ControlChange? {
        guard let kv = json["kv"] else { return nil }
        switch json["type"]?.text ?? "PUT" {
        case "PUT": return entry(kv).map { .put($0) }
        case "DELETE":
            guard let key = kv["key"]?.octets, let revision = kv["mod_revision"]?.int64, revision > 0 else {
                return nil
            }
            return .deleted(ControlKey(bytes: key), at: revision)
        default: return nil
        }
    }
}
