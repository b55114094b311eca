// CA, certificate and key of this node, loaded from files and exchanged as a whole by a reload.
import COpenSSL
import Glibc
import Synchronization

package struct TLSFiles: Hashable, Sendable {
    /// PEM files: the CAs that peers' certificates have to come from, this node's certificate with its chain, its key.
    package var authority: String
    package var certificate: String
    package var privateKey: String

    package init(authority: String, certificate: String, privateKey: String) {
        self.authority = authority
        self.certificate = certificate
        self.privateKey = privateKey
    }
}

/// What new connections begin with: TLS 1.3 only, both sides show a certificate of the CA. Safe from any thread.
///
/// `reload` is for new connections; those that stand keep what they were made with. The system's trust store is never asked.
package final class TLSContext: Sendable {
    private let files: TLSFiles
    private let current: Mutex<TLSMaterial>

    /// Reads the files; blocks for it.
    package init(_ files: TLSFiles) throws(TLSFileError) {
        self.files = files
        self.current = Mutex(try TLSMaterial(files))
    }

    /// Reads the files again; blocks for it. Throws and changes nothing where one of them is no good.
    package func reload() throws(TLSFileError) {
        let new = try TLSMaterial(files)
        current.withLock { $0 = new }
    }

    /// The DNS names in this node's own certificate.
    package var ownNames: [[UInt8]] { material.names }

    var material: TLSMaterial { current.withLock { $0 } }
}

/// One loaded set.
final class TLSMaterial: @unchecked Sendable {
    // @unchecked: an SSL_CTX is counted by atomics and not changed after `init`.
    let context: OpaquePointer
    let names: [[UInt8]]

    init(_ files: TLSFiles) throws(TLSFileError) {
        for file in [files.authority, files.certificate, files.privateKey] { try Self.check(file) }
        var facts = stat()
        guard stat(files.privateKey, &facts) == 0 else {
            throw .unreadable(file: files.privateKey, reason: String(cString: strerror(errno)))
        }
        guard facts.st_mode & 0o007 == 0 else { throw .keyIsReadableByAll(file: files.privateKey) }
        ERR_clear_error()
        defer { ERR_clear_error() }
        guard let context = SSL_CTX_new(TLS_method()) else { throw .unavailable }
        do throws(TLSFileError) {
            try Self.load(files, into: context)
        } catch {
            SSL_CTX_free(context)
            throw error
        }
        self.context = context
        self.names = SSL_CTX_get0_certificate(context).map { TLSConnection.names(of: $0) } ?? []
    }

    deinit { SSL_CTX_free(context) }

    private static func check(_ file: String) throws(TLSFileError) {
        if access(file, R_OK) != 0 { throw .unreadable(file: file, reason: String(cString: strerror(errno))) }
    }

    private static func load(_ files: TLSFiles, into context: OpaquePointer) throws(TLSFileError) {
        guard baton_tls_prepare(context) == 1 else { throw .unavailable }
        baton_tls_verify_peer(context, Int32(TLSLimits.depth), TLSLimits.certificateOctets)
        // An encrypted key would ask on the terminal.
        SSL_CTX_set_default_passwd_cb(context) { _, _, _, _ in -1 }
        guard SSL_CTX_load_verify_locations(context, files.authority, nil) == 1 else {
            throw .noCA(file: files.authority)
        }
        guard SSL_CTX_use_certificate_chain_file(context, files.certificate) == 1 else {
            throw .noCertificate(file: files.certificate)
        }
        guard SSL_CTX_use_PrivateKey_file(context, files.privateKey, SSL_FILETYPE_PEM) == 1 else {
            // Said by the same call: the key was read, and fits another certificate.
            let reason = Int32(truncatingIfNeeded: baton_tls_error_reason(ERR_peek_last_error()))
            if reason == X509_R_KEY_VALUES_MISMATCH || reason == X509_R_KEY_TYPE_MISMATCH {
                throw .keyOfAnotherCertificate(key: files.privateKey, certificate: files.certificate)
            }
            throw .noKey(file: files.privateKey)
        }
        guard SSL_CTX_check_private_key(context) == 1 else {
            throw .keyOfAnotherCertificate(key: files.privateKey, certificate: files.certificate)
        }
    }
}
