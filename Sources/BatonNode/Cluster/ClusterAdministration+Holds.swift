// Operators' suspensions and bounces in the control plane: put, removed, listed.
import BatonCluster
import BatonControlPlane
import BatonCore

extension ClusterAdministration: HoldSharing {
    func put(_ hold: SharedHold) async throws -> UInt64 {
        let write = ControlWrite.put(paths.hold(hold.key), ClusterCodec.json(hold))
        return try await revision(of: ControlTransaction(if: [], [write]))
    }

    func remove(_ keys: [String]) async throws -> UInt64 {
        guard !keys.isEmpty else { return try await all().revision }
        var last: UInt64 = 0
        var rest = keys[...]
        while !rest.isEmpty {
            let part = rest.prefix(64)
            rest = rest.dropFirst(64)
            last = try await revision(of: ControlTransaction(if: [], part.map { .delete(paths.hold($0)) }))
        }
        return last
    }

    private func revision(of transaction: ControlTransaction) async throws -> UInt64 {
        guard case .committed(let header) = try await plane.commit(transaction) else {
            throw ControlFailure.unknown("a change without conditions met a conflict")
        }
        return UInt64(max(0, header.revision))
    }

    func removeOver(_ holds: [SharedHold]) async throws {
        let over = Set(holds)
        let entries = try await plane.list(paths.holds).entries.filter { entry in
            let there: SharedHold? = ClusterCodec.decode(entry.value)
            return there.map(over.contains) ?? false
        }
        for entry in entries.prefix(SharedHoldLimits.holds) {
            _ = try await plane.commit(
                ControlTransaction(if: [.modified(entry.key, at: entry.modified)], [.delete(entry.key)]))
        }
    }

    func all() async throws -> SharedHolds {
        let found = try await plane.list(paths.holds)
        return SharedHolds(
            revision: UInt64(max(0, found.header.revision)),
            holds: found.entries.compactMap { ClusterCodec.decode($0.value) })
    }
}
