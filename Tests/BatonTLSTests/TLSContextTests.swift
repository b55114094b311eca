// Loading certificates: what is refused and how it is named, and the script that makes them.
import BatonTestKit
import Foundation
import Testing

@testable import BatonTLS

let certificates = TestCertificates.shared

/// Files of the fixture: the CA of `authority`, certificate and key `name`.
func files(_ name: String, authority: String = "") -> TLSFiles {
    TLSFiles(
        authority: certificates.path(authority + "ca.pem"), certificate: certificates.path(name + ".pem"),
        privateKey: certificates.path(name + ".key"))
}

private func error(_ files: TLSFiles) -> TLSFileError? {
    do {
        _ = try TLSContext(files)
        return nil
    } catch { return error }
}

@Test func certificateFilesThatAreNoGoodAreLoaded() throws {
    let good = files("n1")
    #expect(error(good) == nil)
    #expect(try TLSContext(good).ownNames == [Array("n1".utf8)])
    #expect(try TLSContext(files("two-names")).ownNames.count == 2)
    #expect(try TLSContext(files("cn-only")).ownNames.isEmpty)

    var gone = good
    gone.authority = certificates.path("nowhere.pem")
    #expect(error(gone) == .unreadable(file: gone.authority, reason: "No such file or directory"))
    var noCA = good
    noCA.authority = good.privateKey
    #expect(error(noCA) == .noCA(file: noCA.authority))
    var noCertificate = good
    noCertificate.certificate = good.privateKey
    #expect(error(noCertificate) == .noCertificate(file: noCertificate.certificate))
    var noKey = good
    noKey.privateKey = certificates.path("ca.pem")
    // A certificate is readable by all, and no key either way.
    #expect(error(noKey) == .keyIsReadableByAll(file: noKey.privateKey))
    #expect(error(files("open")) == .keyIsReadableByAll(file: certificates.path("open.key")))
    // A passphrase would be asked for on the terminal, and the process would wait for it.
    #expect(error(files("locked")) == .noKey(file: certificates.path("locked.key")))
    var mixed = good
    mixed.privateKey = certificates.path("n2.key")
    #expect(error(mixed) == .keyOfAnotherCertificate(key: mixed.privateKey, certificate: mixed.certificate))
}

@Test func reloadOfBrokenFilesTakesTheOldOnesAway() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("baton-reload-\(UUID())").path
    #expect(TestCertificates.certificates(["--dir", folder, "a", "b"]) == 0)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    func put(_ name: String) throws {
        for kind in ["pem", "key"] {
            let data = try Data(contentsOf: URL(fileURLWithPath: "\(folder)/\(name).\(kind)"))
            try data.write(to: URL(fileURLWithPath: "\(folder)/now.\(kind)"))
            try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: "\(folder)/now.\(kind)")
        }
    }
    try put("a")
    let context = try TLSContext(
        TLSFiles(authority: folder + "/ca.pem", certificate: folder + "/now.pem", privateKey: folder + "/now.key"))
    #expect(context.ownNames == [Array("a".utf8)])
    try Data("rubbish".utf8).write(to: URL(fileURLWithPath: folder + "/now.pem"))
    #expect(throws: TLSFileError.noCertificate(file: folder + "/now.pem")) { try context.reload() }
    #expect(context.ownNames == [Array("a".utf8)])
    try put("b")
    try context.reload()
    #expect(context.ownNames == [Array("b".utf8)])
}

@Test func certificateScriptLosesItsCAOrAcceptsAnyName() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("baton-script-\(UUID())").path
    defer { try? FileManager.default.removeItem(atPath: folder) }
    func contents(_ name: String) -> Data? { FileManager.default.contents(atPath: folder + "/" + name) }
    func mode(_ name: String) -> Int? {
        let facts = try? FileManager.default.attributesOfItem(atPath: folder + "/" + name)
        return (facts?[.posixPermissions] as? NSNumber)?.intValue
    }
    #expect(TestCertificates.certificates(["--help"]) == 0)
    for arguments in [
        [], ["--unknown"], ["--dir", folder, "*.x"], ["--dir", folder, "a,DNS:b"], ["--dir", folder, "a b"],
        ["--dir", folder, "ca"], ["--dir", folder, "--days", "0", "a"], ["--dir", folder, "a\nb"],
        ["--dir", folder, "../a"],
    ] {
        #expect(TestCertificates.certificates(arguments) == 64, "\(arguments)")
    }
    #expect(contents("ca.pem") == nil)
    #expect(TestCertificates.certificates(["--dir", folder, "n1"]) == 0)
    let (authority, first) = (contents("ca.pem"), contents("n1.pem"))
    #expect(authority != nil && first != nil)
    // Another run adds a node and leaves the rest alone.
    #expect(TestCertificates.certificates(["--dir", folder, "n1", "n2"]) == 0)
    #expect(contents("ca.pem") == authority)
    #expect(contents("n1.pem") == first)
    #expect(mode("n2.key") == 0o600 && mode("ca.key") == 0o600)
    #expect(TestCertificates.certificates(["--dir", folder, "--renew", "n1"]) == 0)
    #expect(contents("n1.pem") != first && contents("ca.pem") == authority)
    // Half a CA is no reason to make another one.
    try FileManager.default.removeItem(atPath: folder + "/ca.key")
    #expect(TestCertificates.certificates(["--dir", folder, "n3"]) == 64)
    #expect(contents("ca.pem") == authority && contents("n3.pem") == nil)
}
