// The kept corpora through the same entries as under libFuzzer, so that what once crashed never does again.
import BatonCore
import Foundation
import Testing

private let corpora = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("corpus")

private func inputs(of name: String) throws -> [(String, [UInt8])] {
    let folder = corpora.appendingPathComponent(name)
    return try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted().map { file in
        (file, [UInt8](try Data(contentsOf: folder.appendingPathComponent(file))))
    }
}

@Test(arguments: fuzzEntries.keys.sorted())
func keptInputThatIsAFindingAgain(_ name: String) throws {
    let entry = try #require(fuzzEntries[name])
    let kept = try inputs(of: name)
    #expect(kept.count >= 5, "the corpus of \(name) is missing")
    for (file, octets) in kept {
        #expect(throws: Never.self, "\(name)/\(file)") { try entry(octets) }
    }
}

@Test(arguments: fuzzEntries.keys.sorted())
func keptInputWithAFewOctetsChanged(_ name: String) throws {
    let entry = try #require(fuzzEntries[name])
    var random = SplitMix64(seed: 17)
    for (file, octets) in try inputs(of: name).prefix(60) where !octets.isEmpty && octets.count < 4000 {
        for _ in 0..<20 {
            var changed = octets
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                switch Int.random(in: 0..<3, using: &random) {
                case 0:
                    changed[Int.random(in: 0..<changed.count, using: &random)] = UInt8.random(
                        in: 0...255, using: &random)
                case 1:
                    changed.insert(
                        UInt8.random(in: 0...255, using: &random), at: Int.random(in: 0...changed.count, using: &random)
                    )
                default: if changed.count > 1 { changed.remove(at: Int.random(in: 0..<changed.count, using: &random)) }
                }
            }
            let given = changed
            #expect(throws: Never.self, "\(name)/\(file), seed 17: \(given)") { try entry(given) }
        }
    }
}

@Test func targetWithoutItsCorpusOrItsFile() throws {
    let targets = corpora.deletingLastPathComponent().appendingPathComponent("Targets")
    let files = try FileManager.default.contentsOfDirectory(atPath: targets.path)
    let names = Set(files.filter { $0 != "Run.swift" }.map { $0.replacingOccurrences(of: ".swift", with: "") })
    #expect(names == Set(fuzzEntries.keys))
    #expect(Set(try FileManager.default.contentsOfDirectory(atPath: corpora.path)) == names)
}

@Test func cutPiecesAreTheWhole() {
    let octets = (0..<300).map { UInt8(truncatingIfNeeded: $0) }
    for seed in UInt8.min...UInt8.max { #expect(Array(cut(octets, seed: seed).joined()) == octets) }
    #expect(cut(octets, seed: 0).count == 300)
}
