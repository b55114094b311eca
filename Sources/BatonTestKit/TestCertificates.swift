// Certificates for tests, right and wrong ones, made by cluster/certificates and the openssl command into a temporary folder.
import Foundation

/// Made once for a test process; the folder goes with the machine's temporary files. Needs the openssl command.
package struct TestCertificates: Sendable {
    package let folder: String

    /// Nodes n1, n2, n3 and n2.example of one CA; below `other`, n1 and n2 of another CA. Beside them for each name below a
    /// NAME.pem and NAME.key of the first CA that has something wrong.
    package static let shared = TestCertificates()

    /// What is wrong, by file name, with its days of validity and its extensions.
    private static let wrong: [(name: String, days: Int, extensions: String)] = [
        ("expired", -1, "subjectAltName = DNS:n2"),
        ("cn-only", 1, ""),
        ("wildcard", 1, "subjectAltName = DNS:*.example"),
        ("bare-wildcard", 1, "subjectAltName = DNS:*"),
        ("large-letters", 1, "subjectAltName = DNS:N2"),
        ("address-only", 1, "subjectAltName = IP:127.0.0.1"),
        ("client-only", 1, "subjectAltName = DNS:n2\nextendedKeyUsage = clientAuth"),
        ("server-only", 1, "subjectAltName = DNS:n2\nextendedKeyUsage = serverAuth"),
        ("many-names", 1, "subjectAltName = " + (0..<70).map { "DNS:n\($0)" }.joined(separator: ",")),
        ("two-names", 1, "subjectAltName = DNS:other,DNS:n2"),
    ]

    private init() {
        let base = FileManager.default.temporaryDirectory.appendingPathComponent("baton-certificates-\(UUID())").path
        self.folder = base
        Self.certificates(["--dir", base, "n1", "n2", "n3", "n2.example"])
        Self.certificates(["--dir", base + "/other", "n1", "n2"])
        for (name, days, extensions) in Self.wrong { make(name, days: days, extensions) }
        Self.run(
            """
            cd '\(base)' && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
            -subj /CN=n2 -addext subjectAltName=DNS:n2 -keyout self-signed.key -out self-signed.pem
            cp n2.pem locked.pem && openssl ec -in n2.key -aes256 -passout pass:secret -out locked.key
            cp n2.pem open.pem && cp n2.key open.key && chmod 644 open.key
            """)
    }

    /// Runs cluster/certificates of this checkout. Returns its exit status.
    @discardableResult
    package static func certificates(_ arguments: [String]) -> Int32 {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        return run(root.appendingPathComponent("cluster/certificates").path, arguments)
    }

    package func path(_ name: String) -> String { folder + "/" + name }

    /// A certificate for n2 by its CN, of the fixture's CA.
    private func make(_ name: String, days: Int, _ extensions: String) {
        Self.run(
            """
            cd '\(folder)' && printf '%s\\n' '\(extensions)' > \(name).ext &&
            openssl ecparam -genkey -name prime256v1 -noout -out \(name).key && chmod 600 \(name).key &&
            openssl req -new -key \(name).key -subj /CN=n2 -out \(name).csr &&
            openssl x509 -req -in \(name).csr -CA ca.pem -CAkey ca.key -set_serial 77 -days \(days) \
            -extfile \(name).ext -out \(name).pem
            """)
    }

    @discardableResult
    private static func run(_ script: String) -> Int32 { run("/bin/bash", ["-c", script]) }

    private static func run(_ program: String, _ arguments: [String]) -> Int32 {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        guard (try? process.run()) != nil else { return -1 }
        process.waitUntilExit()
        return process.terminationStatus
    }
}
