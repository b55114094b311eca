// Tests of the tree itself: sizes, first lines, imports between floors, the table of bounds.
import Foundation
import Testing

/// The checkout this test was compiled from.
private let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

private struct SourceFile {
    let path: String
    let lines: [Substring]
    let text: String

    /// `BatonSpool` for `Sources/BatonSpool/LaneState.swift`.
    var module: String { String(path.split(separator: "/").dropFirst().first ?? "") }
}

private func files(under folder: String, extensions: Set<String>) -> [SourceFile] {
    let base = root.appendingPathComponent(folder)
    guard let walk = FileManager.default.enumerator(atPath: base.path) else { return [] }
    var found: [SourceFile] = []
    for case let name as String in walk where extensions.contains((name as NSString).pathExtension) {
        guard let text = try? String(contentsOf: base.appendingPathComponent(name), encoding: .utf8) else { continue }
        found.append(
            SourceFile(
                path: folder + "/" + name, lines: text.split(separator: "\n", omittingEmptySubsequences: false),
                text: text))
    }
    return found.sorted { $0.path < $1.path }
}

private let swiftFiles = files(under: "Sources", extensions: ["swift"]) + files(under: "Tests", extensions: ["swift"])

/// A module's floor; it imports from lower floors only. The exceptions of DESIGN section 1 stand in `allowedSideways`.
private let floors: [String: Int] = [
    "CBatonSystem": 0, "CLZ4": 0, "CUnbound": 0, "CIDN2": 0, "CCurl": 0, "COpenSSL": 0,
    "BatonCore": 1, "BatonRuntime": 1,
    "BatonModel": 2,
    "BatonSMTP": 3, "BatonMail": 3, "BatonPeer": 3,
    "BatonSpool": 4, "BatonQueue": 4, "BatonDNS": 4, "BatonHTTPClient": 4, "BatonTLS": 4,
    "BatonIngress": 5, "BatonDelivery": 5, "BatonControlPlane": 5, "BatonCluster": 5,
    "BatonNode": 6,
    "baton": 7, "baton-bench": 7,
]
private let allowedSideways: Set<String> = ["BatonRuntime BatonCore", "BatonCluster BatonControlPlane"]

/// What each module may take from outside (DESIGN section 8). Floors 2 and 3 use NIOCore for ByteBuffer only.
private let outside: [String: Set<String>] = [
    "BatonCore": ["Glibc", "Synchronization"],
    "BatonRuntime": ["Glibc", "Synchronization", "NIOCore", "NIOPosix", "DequeModule"],
    "BatonModel": ["NIOCore"],
    "BatonSMTP": ["NIOCore", "Glibc"],
    "BatonMail": ["NIOCore", "Glibc"],
    "BatonPeer": ["NIOCore"],
    "BatonSpool": ["NIOCore", "Glibc", "Synchronization", "DequeModule", "Logging", "Metrics"],
    "BatonQueue": ["NIOCore", "Glibc", "Synchronization", "DequeModule", "Logging", "Metrics"],
    "BatonDNS": ["NIOCore", "Glibc", "Synchronization", "DequeModule", "Logging", "Metrics"],
    "BatonHTTPClient": ["Glibc", "Synchronization"],
    "BatonTLS": ["NIOCore", "Glibc", "Synchronization"],
    "BatonControlPlane": ["Glibc", "Synchronization", "Logging"],
    "BatonIngress": ["NIOCore", "NIOPosix", "Glibc", "Synchronization", "DequeModule", "Logging", "Metrics"],
    "BatonDelivery": ["NIOCore", "NIOPosix", "Glibc", "Synchronization", "DequeModule", "Logging", "Metrics"],
    "BatonCluster": [
        "NIOCore", "NIOPosix", "Glibc", "Synchronization", "DequeModule", "Logging", "Metrics", "Foundation",
    ],
]

private func imports(of file: SourceFile) -> [String] {
    file.lines.compactMap { line in
        let words = line.split(separator: " ")
        guard let at = words.firstIndex(of: "import"), words[..<at].allSatisfy({ $0.hasPrefix("@") || $0 == "package" })
        else { return nil }
        return words[(at + 1)...].last.map { String($0.split(separator: ".")[0]) }
    }
}

@Test func theTreeIsWhereThisTestLooks() {
    #expect(swiftFiles.count > 50)
    #expect(Set(swiftFiles.map(\.module)).isSuperset(of: ["BatonCore", "BatonNode", "baton"]))
}

@Test func fileOverSixHundredLines() {
    let all =
        swiftFiles + files(under: "Sources", extensions: ["c", "h"])
        + files(under: "benchmarks", extensions: ["py", "sh"]) + files(under: "cluster", extensions: ["py", "sh"])
    let long = all.filter { $0.lines.count > 600 }.map { "\($0.path): \($0.lines.count)" }
    #expect(long.isEmpty)
}

@Test func fileThatDoesNotSayWhatItHolds() {
    let silent = swiftFiles.filter { file in
        let first = file.lines.first ?? ""
        return !first.hasPrefix("// ") || first.count < 20 || first.contains("Placeholder")
            || first.contains("swift-tools-version")
    }
    #expect(silent.map(\.path).isEmpty)
}

@Test func importUpwardSidewaysOrFromOutsideTheList() {
    var wrong: [String] = []
    for file in files(under: "Sources", extensions: ["swift"]) {
        guard let mine = floors[file.module] else {
            if file.module != "BatonTestKit", !file.module.hasPrefix("baton-fuzz") {
                wrong.append("\(file.path): module without a floor")
            }
            continue
        }
        for name in imports(of: file) {
            if let other = floors[name] {
                let sideways = allowedSideways.contains("\(file.module) \(name)")
                if other >= mine, !sideways { wrong.append("\(file.path) imports \(name)") }
            } else if let allowed = outside[file.module], !allowed.contains(name) {
                wrong.append("\(file.path) imports \(name)")
            }
        }
    }
    #expect(wrong.isEmpty)
}

@Test func uncheckedSendableWithoutAReason() {
    var bare: [String] = []
    for file in files(under: "Sources", extensions: ["swift"]) {
        for (index, line) in file.lines.enumerated() {
            guard line.contains("@unchecked Sendable") || line.contains("nonisolated(unsafe)") else { continue }
            if line.trimmingCharacters(in: .whitespaces).hasPrefix("//") { continue }
            let near = file.lines[max(0, index - 4)...min(file.lines.count - 1, index + 2)]
            if !near.contains(where: { $0.contains("//") }) { bare.append("\(file.path):\(index + 1)") }
        }
    }
    #expect(bare.isEmpty)
}

/// Rows of docs/LIMITS.md: name, default, key, metric, what happens, test.
private func limitRows() throws -> [[String]] {
    let text = try String(contentsOf: root.appendingPathComponent("docs/LIMITS.md"), encoding: .utf8)
    return text.split(separator: "\n").filter { $0.hasPrefix("|") }.map { line in
        line.split(separator: "|", omittingEmptySubsequences: false).dropFirst().dropLast()
            .map { $0.trimmingCharacters(in: .whitespaces) }
    }.filter { row in
        row.count >= 6 && row[0] != "name" && !row[0].hasPrefix("-") && !row[0].isEmpty
    }
}

/// Names of all test functions.
private func testNames() -> Set<String> {
    var names: Set<String> = []
    for file in files(under: "Tests", extensions: ["swift"]) {
        for line in file.lines {
            let words = line.split(separator: " ")
            guard let at = words.firstIndex(of: "func"), at + 1 < words.count else { continue }
            names.insert(String(words[at + 1].prefix { $0.isLetter || $0.isNumber || $0 == "_" }))
        }
    }
    return names
}

@Test func caseWhoseTestDoesNotExist() throws {
    let text = try String(contentsOf: root.appendingPathComponent("docs/SMTP_SUPPORT.md"), encoding: .utf8)
    let table = try #require(text.components(separatedBy: "## Cases and the tests").last)
    let known = testNames()
    var named = 0
    for row in table.split(separator: "\n") where row.hasPrefix("|") {
        let cells = row.split(separator: "|", omittingEmptySubsequences: false)
        guard cells.count > 3 else { continue }
        for (index, name) in cells[2].split(separator: "`").enumerated() where index % 2 == 1 {
            named += 1
            #expect(known.contains(String(name)), "\(name) is no test")
        }
    }
    #expect(named > 100)
}

@Test func boundWithoutATestThatDrivesIt() throws {
    let rows = try limitRows()
    #expect(rows.count >= 30)
    let known = testNames()
    var missing: [String] = []
    var open: [String] = []
    for row in rows {
        let names = row[5].split { !$0.isLetter && !$0.isNumber && $0 != "_" }.map(String.init)
        if row[5] == "-" {
            open.append(row[0])
        } else if known.isDisjoint(with: names) {
            missing.append("\(row[0]): \(row[5])")
        }
    }
    #expect(missing.isEmpty)
    #expect(open.isEmpty)
}

@Test func topLevelEntryBeyondTheAgreedOnes() throws {
    let allowed: Set<String> = [
        "Package.swift", "Package.resolved", "Sources", "Tests", "cluster", "benchmarks", "docs", "README.md",
        "LICENSE",
        "Makefile", ".ci", ".git", ".gitignore", ".swift-format", ".build", ".swiftpm",
    ]
    let names = try FileManager.default.contentsOfDirectory(atPath: root.path)
    #expect(Set(names).subtracting(allowed).filter { !$0.hasPrefix("baton-data") }.isEmpty)
}
