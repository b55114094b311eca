// Why a connection or a set of files is refused, by name, and the bounds of TLS.
import COpenSSL

/// Why a TLS connection ended otherwise than by its close. Of the peer nothing but this name goes into a log.
package enum TLSFailure: Error, CaseIterable, Hashable, Sendable {
    /// What came is no TLS record.
    case notTLS
    /// No TLS 1.3.
    case protocolVersion
    /// Not issued by the CA, self-signed included.
    case untrusted
    case expired
    case notYetValid
    /// Valid, and of another name.
    case wrongName
    /// Valid, and without any DNS name in it; the CN is none.
    case noName
    case noCertificate
    /// Refused for another reason: its purpose, its key, its signature.
    case badCertificate
    /// The peer ended the handshake or the connection with an alert.
    case refusedByPeer
    /// The octets do not decrypt, or contradict the protocol.
    case corrupted
    /// The stream ended without close_notify.
    case truncated
    /// More is to be written before the handshake is over than may wait.
    case overflow
    /// OpenSSL has no memory, or something that cannot be.
    case internalError

    /// What an error of `SSL_do_handshake`, `SSL_read` or `SSL_write` means. `verification`: X509_V_…
    static func of(code: UInt, verification: Int) -> TLSFailure {
        guard baton_tls_error_library(code) == UInt(ERR_LIB_SSL) else { return code == 0 ? .truncated : .corrupted }
        let reason = Int32(truncatingIfNeeded: baton_tls_error_reason(code))
        // An alert that came from the peer.
        if reason >= SSL_AD_REASON_OFFSET {
            return reason - SSL_AD_REASON_OFFSET == SSL_AD_PROTOCOL_VERSION ? .protocolVersion : .refusedByPeer
        }
        switch reason {
        case SSL_R_CERTIFICATE_VERIFY_FAILED: return ofVerification(Int32(truncatingIfNeeded: verification))
        case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE: return .noCertificate
        case SSL_R_WRONG_VERSION_NUMBER, SSL_R_HTTP_REQUEST, SSL_R_HTTPS_PROXY_REQUEST, SSL_R_PACKET_LENGTH_TOO_LONG,
            SSL_R_RECORD_LENGTH_MISMATCH, SSL_R_BAD_RECORD_TYPE, SSL_R_UNEXPECTED_MESSAGE:
            return .notTLS
        case SSL_R_UNSUPPORTED_PROTOCOL, SSL_R_NO_PROTOCOLS_AVAILABLE, SSL_R_VERSION_TOO_LOW: return .protocolVersion
        default: return .corrupted
        }
    }

    private static func ofVerification(_ result: Int32) -> TLSFailure {
        switch result {
        case X509_V_ERR_CERT_HAS_EXPIRED: .expired
        case X509_V_ERR_CERT_NOT_YET_VALID: .notYetValid
        case X509_V_ERR_HOSTNAME_MISMATCH: .wrongName
        case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
            X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN,
            X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE, X509_V_ERR_CERT_SIGNATURE_FAILURE, X509_V_ERR_CERT_UNTRUSTED:
            .untrusted
        default: .badCertificate
        }
    }
}

/// Why certificates were not loaded. Names the file, never what is in it.
package enum TLSFileError: Error, Hashable, Sendable, CustomStringConvertible {
    case unreadable(file: String, reason: String)
    case noCA(file: String)
    case noCertificate(file: String)
    /// No private key in PEM, or one with a passphrase: nobody is there to type it.
    case noKey(file: String)
    /// Others than owner and group may read it.
    case keyIsReadableByAll(file: String)
    case keyOfAnotherCertificate(key: String, certificate: String)
    /// OpenSSL gave nothing.
    case unavailable

    package var description: String {
        switch self {
        case .unreadable(let file, let reason): "\(file): \(reason)"
        case .noCA(let file): "\(file): no CA certificate in PEM"
        case .noCertificate(let file): "\(file): no certificate in PEM, or one that OpenSSL finds too weak"
        case .noKey(let file): "\(file): no private key in PEM without passphrase"
        case .keyIsReadableByAll(let file): "\(file): a private key must not be readable by everybody (chmod 600)"
        case .keyOfAnotherCertificate(let key, let certificate): "\(key) is not the key of \(certificate)"
        case .unavailable: "OpenSSL has refused to make a TLS context"
        }
    }
}

/// docs/LIMITS.md says what happens at each.
package enum TLSLimits {
    /// DNS names that are read of a certificate.
    package static let names = 64
    /// Certificates between the CA and the peer's.
    package static let depth = 4
    /// Octets of all certificates that a peer shows.
    package static let certificateOctets = 64 * 1024
    /// Plain octets that are turned into records at once.
    package static let writeOctets = 64 * 1024
    /// Plain octets that wait for the end of the handshake.
    package static let pendingOctets = 256 * 1024
}
