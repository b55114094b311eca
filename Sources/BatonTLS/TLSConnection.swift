// One TLS connection between two memories: octets in, octets out, no socket.
import COpenSSL
import NIOCore

/// Which end of a connection is this node's.
package enum TLSRole: Hashable, Sendable {
    /// The certificate has to carry this DNS name, letter by letter.
    case client(name: [UInt8])
    case server
}

/// Wraps an `SSL` over two memory BIOs. Used by one thread at a time; may change the thread between two calls.
///
/// What it holds is bounded by one read of the transport and a record (16 KiB) on the way in, and by `TLSLimits.writeOctets` on the
/// way out, as long as its owner takes the output after every call. After it has thrown it is asked for its last output only.
package final class TLSConnection {
    private let ssl: OpaquePointer
    private let input: OpaquePointer
    private let output: OpaquePointer
    private let role: TLSRole
    private var isShut = false
    package private(set) var isEstablished = false
    /// The peer has said close_notify.
    package private(set) var isClosedByPeer = false

    /// Nil where OpenSSL has no memory, or the name cannot be one.
    package init?(_ context: TLSContext, _ role: TLSRole) {
        guard let ssl = SSL_new(context.material.context) else { return nil }
        guard let input = baton_tls_memory(), let output = baton_tls_memory() else {
            SSL_free(ssl)
            return nil
        }
        SSL_set_bio(ssl, input, output)
        self.ssl = ssl
        self.input = input
        self.output = output
        self.role = role
        switch role {
        case .client(let name):
            SSL_set_connect_state(ssl)
            let isTaken = name.withUnsafeBytes { octets in
                baton_tls_require_name(ssl, octets.baseAddress?.assumingMemoryBound(to: CChar.self), octets.count)
            }
            // An empty name would switch the check off.
            guard isTaken == 1, !name.isEmpty, !name.contains(0) else { return nil }
        case .server: SSL_set_accept_state(ssl)
        }
    }

    deinit { SSL_free(ssl) }

    /// The DNS names of the peer's certificate as they stand in it; none before the handshake is over.
    package var peerNames: [[UInt8]] {
        guard isEstablished, let certificate = SSL_get1_peer_certificate(ssl) else { return [] }
        defer { X509_free(certificate) }
        return Self.names(of: certificate)
    }

    static func names(of certificate: OpaquePointer) -> [[UInt8]] {
        let octets = [UInt8](unsafeUninitializedCapacity: TLSLimits.names * 256) { space, count in
            count = baton_tls_dns_names(certificate, space.baseAddress, space.count, Int32(TLSLimits.names))
        }
        var names: [[UInt8]] = []
        var rest = octets[...]
        while let length = rest.popFirst() {
            names.append(Array(rest.prefix(Int(length))))
            rest = rest.dropFirst(Int(length))
        }
        return names
    }

    // MARK: In

    /// Takes what the transport read.
    package func feed(_ octets: ByteBuffer) throws(TLSFailure) {
        let taken = octets.withUnsafeReadableBytes { BIO_write(input, $0.baseAddress, Int32(clamping: $0.count)) }
        guard Int(taken) == octets.readableBytes else { throw .internalError }
    }

    /// Goes on with the handshake. True: it is over, and the peer is who it has to be.
    package func handshake() throws(TLSFailure) -> Bool {
        guard !isEstablished else { return true }
        ERR_clear_error()
        let result = SSL_do_handshake(ssl)
        guard result == 1 else {
            try judge(result)
            return false
        }
        isEstablished = true
        if case .client(let name) = role, !peerNames.contains(name) {
            // OpenSSL does not tell small letters from large ones.
            throw peerNames.isEmpty ? .noName : .wrongName
        }
        return true
    }

    /// Appends what can be decrypted.
    package func read(into plain: inout ByteBuffer) throws(TLSFailure) {
        guard isEstablished else { return }
        while !isClosedByPeer {
            ERR_clear_error()
            var result: Int32 = 0
            plain.writeWithUnsafeMutableBytes(minimumWritableBytes: 1024) { space in
                result = SSL_read(ssl, space.baseAddress, Int32(clamping: space.count))
                return max(0, Int(result))
            }
            if result <= 0 {
                try judge(result)
                return
            }
        }
    }

    /// Nothing for "more has to come", and for the peer's close.
    private func judge(_ result: Int32) throws(TLSFailure) {
        switch SSL_get_error(ssl, result) {
        case SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE: return
        case SSL_ERROR_ZERO_RETURN: isClosedByPeer = true
        default:
            let failure = TLSFailure.of(code: ERR_get_error(), verification: SSL_get_verify_result(ssl))
            ERR_clear_error()
            // A client whose certificate has no name at all has failed by the name as well.
            throw failure
        }
    }

    // MARK: Out

    /// Turns at most `TLSLimits.writeOctets` of `plain` into records and moves its reader index behind them.
    package func write(_ plain: inout ByteBuffer) throws(TLSFailure) {
        guard isEstablished, !isShut else { throw .internalError }
        let length = min(plain.readableBytes, TLSLimits.writeOctets)
        guard length > 0 else { return }
        ERR_clear_error()
        let result = plain.withUnsafeReadableBytes { SSL_write(ssl, $0.baseAddress, Int32(length)) }
        guard result > 0 else {
            try judge(result)
            throw .internalError
        }
        plain.moveReaderIndex(forwardBy: Int(result))
    }

    /// Records for the transport; nil: none.
    package func takeOutput() -> ByteBuffer? {
        let length = baton_tls_pending(output)
        guard length > 0 else { return nil }
        var records = ByteBufferAllocator().buffer(capacity: length)
        records.writeWithUnsafeMutableBytes(minimumWritableBytes: length) { space in
            max(0, Int(BIO_read(output, space.baseAddress, Int32(clamping: length))))
        }
        return records
    }

    /// Says close_notify; its record is among the output then. Nothing is written after it.
    package func close() {
        guard isEstablished, !isShut else { return }
        isShut = true
        ERR_clear_error()
        _ = SSL_shutdown(ssl)
        ERR_clear_error()
    }
}
