// `baton spool inspect`: exit codes and JSON, on a real disk.
import Foundation
import Testing

@testable import BatonNode
@testable import baton

private func withFolder(_ body: (String) async throws -> Void) async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("inspect-\(UUID().uuidString)").path
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try await body(folder)
}

@Test func inspectionOfDamageExitsWith0() async throws {
    try await withFolder { folder in
        #expect(await Baton.run(arguments: ["spool", "inspect", folder]) == 0)
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder).isEmpty, "it wrote")
        #expect(await Baton.run(arguments: ["spool", "inspect", folder + "/nowhere"]) == 66)
        try Data("no registry".utf8).write(to: URL(fileURLWithPath: folder + "/registry"))
        #expect(await Baton.run(arguments: ["spool", "inspect", folder, "--json"]) == 65)
        let json = try SpoolInspection.inspect(folder, json: true).text
        #expect(json.contains("\"healthy\" : false"))
        #expect(json.contains("registry: damaged or unreadable"))
    }
}
