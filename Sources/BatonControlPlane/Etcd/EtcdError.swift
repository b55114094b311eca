// etcd's errors, and what they say about the effect of a request.

/// A gRPC status as the gateway writes it: `{"error","message","code"}`, in a stream `{"error":{"grpc_code","message",…}}`.
struct EtcdError: Hashable, Sendable {
    let code: Int64
    let text: String

    init(code: Int64, text: String) {
        self.code = code
        self.text = text
    }

    /// An answer's body with a status other than 200; nil where it is none of the gateway's errors.
    init?(_ json: JSONValue) {
        guard let code = json["code"]?.int64 else { return nil }
        self.code = code
        self.text = String((json["message"]?.text ?? json["error"]?.text ?? "").prefix(200))
    }

    /// The error of a stream's line.
    init?(stream json: JSONValue) {
        guard let code = (json["grpc_code"] ?? json["code"])?.int64 else { return nil }
        self.code = code
        self.text = String((json["message"]?.text ?? "").prefix(200))
    }

    enum Meaning: Hashable, Sendable {
        /// etcd decided against it, before any effect.
        case refused(ControlRefusal)
        /// No valid token came with it; no effect.
        case tokenNeeded
        /// No quorum, no leader, shutting down, or anything unforeseen: another member may do better; the effect is unknown.
        case trouble
    }

    /// By gRPC's status codes; etcd's texts tell a few apart (rpctypes/error.go of 3.4 and 3.5).
    var meaning: Meaning {
        switch code {
        case 3:
            if has("user name is empty") || has("auth revision in header is old") { return .tokenNeeded }
            return has("authentication failed") || has("permission") ? .refused(.denied) : .refused(.invalid)
        case 5: return has("lease") ? .refused(.leaseGone) : .trouble
        case 7: return .refused(.denied)
        case 8: return has("space") ? .refused(.noSpace) : has("too large") ? .refused(.invalid) : .refused(.overloaded)
        case 9: return .refused(.invalid)
        case 11: return has("compacted") ? .refused(.compacted) : .refused(.invalid)
        case 12: return .refused(.invalid)
        case 16: return .tokenNeeded
        default: return .trouble
        }
    }

    var isExistingLease: Bool { code == 9 && has("lease already exists") }
    var isAuthenticationOff: Bool { code == 9 && has("authentication is not enabled") }

    private func has(_ part: String) -> Bool { text.contains(part) }
}
