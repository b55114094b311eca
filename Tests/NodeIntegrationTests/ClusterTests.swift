// Three real nodes with TLS between them, a real etcd, a sink: a node that dies, disk and all, loses nothing.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct ClusterTests {
    /// `benchmarks/faults` ends with 1 where a recipient answered 250 is lost or altered.
    ///
    /// The sink's answers take 0.4 s, so that some ten messages of every node are on their way at any time: a node that dies has mail.
    private func play(_ kinds: String, rounds: Int) throws -> (code: Int, output: String) {
        let folder = try TestFolder()
        let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().appendingPathComponent("benchmarks/faults").path
        let run = try Program.run(
            [
                "/usr/bin/python3", script, "--bin", Places.folder, "--kinds", kinds, "--rounds", "\(rounds)",
                "--rate", "25", "--etcd", "1", "--latency", "400ms", "--connections", "40",
            ], in: folder, seconds: 420)
        return (run.code, run.output)
    }

    @Test(.enabled(if: Places.canMakeNetworks && Places.runs("etcd"), "needs network namespaces and etcd"))
    func nodeDiesWithItsDiskAndMailIsLost() throws {
        let run = try play("disk,restart", rounds: 2)
        #expect(run.code == 0, "\(run.output)")
        #expect(run.output.contains("lost 0, altered 0"), "\(run.output)")
        #expect(run.output.contains("backlog_moves"), "nothing was taken over: \(run.output)")
    }

    /// etcd as it was before a node's death and the takeover of its segments: nobody may go by it until the operator's command.
    @Test(.enabled(if: Places.canMakeNetworks && Places.runs("etcd"), "needs network namespaces and etcd"))
    func etcdIsSetBackAndTheNodesGoByIt() throws {
        let run = try play("etcd-set-back", rounds: 1)
        #expect(run.code == 0, "\(run.output)")
        #expect(run.output.contains("lost 0, altered 0"), "\(run.output)")
        #expect(!run.output.contains("  ! "), "\(run.output)")
    }
}
