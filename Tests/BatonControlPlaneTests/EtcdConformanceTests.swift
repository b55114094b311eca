// The etcd plane conforms, against a real etcd.
import BatonControlPlane
import BatonCore
import Foundation
import Testing

/// Shared by the cases; its shell kills it when this process ends.
private let shared: Result<EtcdServer, any Error> = Result { try EtcdServer(isShared: true) }

@Suite(.serialized, .timeLimit(.minutes(3)))
struct EtcdConformanceTests {
    @Test(arguments: Conformance.cases)
    func conforms(_ one: ConformanceCase) async throws {
        let server = try shared.get()
        let plane = try EtcdControlPlane(server.settings())
        defer { plane.stop() }
        try await server.waitUntilItAnswers(plane)
        let test = PlaneUnderTest(
            plane: plane, prefix: "/\(UUID().uuidString)",
            pass: { span in try? await Task.sleep(nanoseconds: UInt64(max(0, span.nanoseconds))) },
            compact: {
                let revision = try await plane.get("/any").header.revision
                try await server.ask("/v3/kv/compaction", #"{"revision":"\#(revision)"}"#)
            })
        try await one.run(test)
    }
}
