// The registry of a single node: one checksummed file in the locked data directory.
import BatonCore
import BatonModel
import BatonRuntime
import NIOCore
import Synchronization

/// Every change replaces the file (`SmallFile`), so that a crash leaves the old or the new one. The data directory's lock
/// makes it exclusive. A damaged file is put aside and the registry begins empty: recovery then adopts the segments it
/// finds (docs/SPOOL_FORMAT.md, "Registry").
package final class LocalSegmentRegistry: SegmentRegistry {
    private struct State {
        var keys: [SegmentID: SegmentKey]
        var revision: UInt64
        /// A change's outcome is unknown: memory and disk may differ until the file is read again.
        var unknown = false
    }

    private let state: Mutex<State>
    private let directory: String
    private let disk: any Disk
    private let registryID: UInt64
    /// The file was damaged: keys may be missing.
    package let wasDamaged: Bool

    private init(state: State, directory: String, disk: any Disk, registryID: UInt64, wasDamaged: Bool) {
        self.state = Mutex(state)
        self.directory = directory
        self.disk = disk
        self.registryID = registryID
        self.wasDamaged = wasDamaged
    }

    package static func open(_ directory: DataDirectory) throws(SpoolError) -> LocalSegmentRegistry {
        var damaged = false
        switch content(in: directory.path, disk: directory.disk) {
        case .payload(let found):
            var byID: [SegmentID: SegmentKey] = [:]
            for key in found.keys { byID[key.id] = key }
            return LocalSegmentRegistry(
                state: State(keys: byID, revision: found.revision), directory: directory.path, disk: directory.disk,
                registryID: found.id, wasDamaged: false)
        case .damaged: damaged = true
        case .absent: break
        }
        if damaged {
            do throws(DiskError) {
                try directory.disk.rename("\(directory.path)/registry", to: "\(directory.path)/registry.damaged")
                try directory.disk.syncDirectory(directory.path)
            } catch {
                throw SpoolError(.notWritable, "the damaged registry cannot be put aside", error)
            }
        }
        return LocalSegmentRegistry(
            state: State(keys: [:], revision: 0), directory: directory.path, disk: directory.disk,
            registryID: directory.identity.diskID ^ directory.incarnation.value, wasDamaged: damaged)
    }

    enum Content {
        case absent
        /// Unreadable, or not what this version writes.
        case damaged
        case payload((id: UInt64, revision: UInt64, keys: [SegmentKey]))
    }

    /// What the file in a data directory says now. Reads only; blocking.
    static func content(in path: String, disk: any Disk) -> Content {
        switch SmallFile.read("\(path)/registry", limit: 64 + SpoolLimits.registrySegments * 160, from: disk) {
        case .absent: return .absent
        case .damaged: return .damaged
        case .payload(let payload): return RegistryFormat.decode(payload).map { .payload($0) } ?? .damaged
        }
    }

    package func list() throws(SpoolError) -> [SegmentKey] {
        try known().values.sorted {
            ($0.id.incarnation.value, $0.id.index) < ($1.id.incarnation.value, $1.id.index)
        }
    }

    package func read(_ id: SegmentID) throws(SpoolError) -> SegmentKey? { try known()[id] }

    private func known() throws(SpoolError) -> [SegmentID: SegmentKey] {
        let result: Result<[SegmentID: SegmentKey], SpoolError> = state.withLock { state in
            do throws(SpoolError) {
                try settle(&state)
                return .success(state.keys)
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// After a change of unknown outcome: what the file says now counts, once it is written anew. Its last rename may not have
    /// reached the disk, and nobody may act on a key that a power cut takes back.
    private func settle(_ state: inout State) throws(SpoolError) {
        guard state.unknown else { return }
        var keys: [SegmentID: SegmentKey] = [:]
        var revision: UInt64 = 0
        switch Self.content(in: directory, disk: disk) {
        case .payload(let found) where found.id == registryID:
            for key in found.keys { keys[key.id] = key }
            revision = found.revision
        // The very first change.
        case .absent where state.revision == 0: break
        case .payload, .damaged, .absent:
            throw SpoolError(.registryFailed, "the registry cannot be read after a change of unknown outcome")
        }
        do throws(DiskError) {
            try write(keys, revision: revision)
        } catch {
            throw SpoolError(.registryFailed, "the registry cannot be written", error)
        }
        state = State(keys: keys, revision: revision)
    }

    private func write(_ keys: [SegmentID: SegmentKey], revision: UInt64) throws(DiskError) {
        let payload = RegistryFormat.encode(id: registryID, revision: revision, keys: keys.values)
        try SmallFile.replace("registry", in: directory, with: payload, on: disk)
    }

    package func store(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer {
        try change([(key.id, key.revision, key)]).first ?? .conflict(nil)
    }

    package func store(_ keys: [SegmentKey]) throws(SpoolError) -> [RegistryAnswer] {
        try change(keys.map { ($0.id, $0.revision, $0) })
    }

    package func remove(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer {
        try change([(key.id, key.revision, nil)]).first ?? .conflict(nil)
    }

    private typealias Change = (id: SegmentID, expected: UInt64, key: SegmentKey?)

    private func change(_ changes: [Change]) throws(SpoolError) -> [RegistryAnswer] {
        let result: Result<[RegistryAnswer], SpoolError> = state.withLock { state in
            do throws(SpoolError) {
                try settle(&state)
            } catch {
                return .failure(error)
            }
            var keys = state.keys
            var revision = state.revision
            var answers: [RegistryAnswer] = []
            for change in changes {
                let current = keys[change.id]
                guard (current?.revision ?? 0) == change.expected else {
                    answers.append(.conflict(current))
                    continue
                }
                revision &+= 1
                var key = change.key
                key?.revision = revision
                keys[change.id] = key
                answers.append(.committed(key))
            }
            guard revision != state.revision else { return .success(answers) }
            do throws(DiskError) {
                try write(keys, revision: revision)
            } catch {
                // From the rename on it may be there.
                state.unknown = true
                return .failure(SpoolError(.registryFailed, "the registry cannot be written", error))
            }
            state.keys = keys
            state.revision = revision
            return .success(answers)
        }
        return try result.get()
    }
}

/// The registry file's payload (docs/SPOOL_FORMAT.md, "Registry").
enum RegistryFormat {
    static func encode(id: UInt64, revision: UInt64, keys: some Collection<SegmentKey>) -> ByteBuffer {
        var buffer = ByteBufferAllocator().buffer(capacity: 64 + keys.count * 130)
        buffer.writeString("BTNR")
        buffer.writeMultipleIntegers(UInt32(1), id, revision, UInt32(keys.count), endianness: .little)
        for key in keys {
            write(key.id, into: &buffer)
            buffer.writeMultipleIntegers(key.revision, key.appendEpoch, key.drainEpoch, endianness: .little)
            buffer.writeMultipleIntegers(key.drainer.node.value, key.drainer.incarnation.value, endianness: .little)
            switch key.state {
            case .open: buffer.writeMultipleIntegers(UInt8(1), Int64(0), endianness: .little)
            case .sealed(let end): buffer.writeMultipleIntegers(UInt8(2), end, endianness: .little)
            case .finished: buffer.writeMultipleIntegers(UInt8(3), Int64(0), endianness: .little)
            }
            buffer.writeInteger(UInt8(key.target == nil ? 0 : 1))
            if let target = key.target { write(target, into: &buffer) }
            buffer.writeInteger(UInt8(clamping: key.ensemble.count))
            for member in key.ensemble.prefix(255) {
                buffer.writeMultipleIntegers(member.node.value, member.diskID, endianness: .little)
            }
        }
        return buffer
    }

    static func decode(_ payload: ByteBuffer) -> (id: UInt64, revision: UInt64, keys: [SegmentKey])? {
        var buffer = payload
        guard buffer.readString(length: 4) == "BTNR",
            let (version, id, revision, count) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt64, UInt64, UInt32).self), version == 1,
            count <= SpoolLimits.registrySegments, Int(count) * 75 <= buffer.readableBytes
        else { return nil }
        var keys: [SegmentKey] = []
        keys.reserveCapacity(Int(count))
        for _ in 0..<count {
            guard let key = decodeKey(&buffer) else { return nil }
            keys.append(key)
        }
        return buffer.readableBytes == 0 ? (id, revision, keys) : nil
    }

    private static func decodeKey(_ buffer: inout ByteBuffer) -> SegmentKey? {
        guard let id = readSegmentID(&buffer),
            let (revision, appendEpoch, drainEpoch, node, incarnation, tag, end) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt8, Int64).self),
            let hasTarget: UInt8 = buffer.readInteger(), hasTarget <= 1
        else { return nil }
        let state: SegmentState
        switch tag {
        case 1: state = .open
        case 2 where end >= 0: state = .sealed(at: end)
        case 3: state = .finished
        default: return nil
        }
        var target: SegmentID?
        if hasTarget == 1 {
            guard let found = readSegmentID(&buffer) else { return nil }
            target = found
        }
        guard let members: UInt8 = buffer.readInteger() else { return nil }
        var ensemble: [EnsembleMember] = []
        for _ in 0..<members {
            guard let (node, diskID) = buffer.readMultipleIntegers(endianness: .little, as: (UInt64, UInt64).self)
            else { return nil }
            ensemble.append(EnsembleMember(node: NodeID(value: node), diskID: diskID))
        }
        var key = SegmentKey(
            id: id, ensemble: ensemble, appendEpoch: appendEpoch, state: state,
            drainer: Drainer(node: NodeID(value: node), incarnation: Incarnation(value: incarnation)),
            drainEpoch: drainEpoch, target: target)
        key.revision = revision
        return key
    }

    static func write(_ id: SegmentID, into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(id.writer.value, id.incarnation.value, id.index, endianness: .little)
    }

    static func readSegmentID(_ buffer: inout ByteBuffer) -> SegmentID? {
        guard
            let (writer, incarnation, index) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt64, UInt64).self)
        else { return nil }
        return SegmentID(writer: NodeID(value: writer), incarnation: Incarnation(value: incarnation), index: index)
    }
}
