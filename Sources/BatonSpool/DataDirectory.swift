// The data directory: its lock, its identity and this run's incarnation.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore

/// Whose disk this is (DESIGN section 4: a foreign disk never answers for recovery).
package struct DiskIdentity: Hashable, Sendable {
    package let cluster: String
    package let nodeName: String
    /// Random, drawn when the directory was first used.
    package let diskID: UInt64

    package var node: NodeID { NodeID(name: nodeName) }
}

/// A locked data directory. Layout: `lock identity incarnation registry reserve segments/` and other modules' files.
package struct DataDirectory: Sendable {
    package let path: String
    package let disk: any Disk
    package let identity: DiskIdentity
    /// New at each start, fsync'ed before anything is written under it (PROTOCOL A5).
    package let incarnation: Incarnation
    /// What had to be repaired in opening it, for the log.
    package let notes: [String]
    private let lockFile: DiskFile

    package var segmentsPath: String { "\(path)/segments" }

    /// Makes what is missing, locks, checks the identity, draws the incarnation. Blocking. Throws `locked`,
    /// `foreignDirectory`, or `notWritable`; damage to its small files is repaired and noted, never fatal.
    package static func open(
        path: String, disk: any Disk, cluster: String, nodeName: String, random: () -> UInt64
    ) throws(SpoolError) -> DataDirectory {
        let opened: DataDirectory
        do throws(DiskError) {
            opened = try openLocked(path: path, disk: disk, cluster: cluster, nodeName: nodeName, random: random)
        } catch {
            if error.call == "flock", error.errno == EWOULDBLOCK {
                throw SpoolError(.locked, "data directory \(path) is in use by another process")
            }
            throw SpoolError(.notWritable, "data directory \(path) cannot be used", error)
        }
        let found = opened.identity
        guard found.cluster == cluster, found.nodeName == nodeName else {
            opened.close()
            throw SpoolError(
                .foreignDirectory,
                "data directory \(path) belongs to node \"\(found.nodeName)\" of cluster \"\(found.cluster)\": "
                    + "set node.id back, or use another data_dir")
        }
        return opened
    }

    private static func openLocked(
        path: String, disk: any Disk, cluster: String, nodeName: String, random: () -> UInt64
    ) throws(DiskError) -> DataDirectory {
        try makeDirectory(path, on: disk)
        try makeDirectory("\(path)/segments", on: disk)
        let lockFile = try openOrCreate("\(path)/lock", on: disk)
        do throws(DiskError) {
            try disk.lock(lockFile)
            var notes: [String] = []
            let found = try identity(at: path, disk: disk, cluster: cluster, nodeName: nodeName, random, &notes)
            let incarnation = Incarnation(value: random())
            guard found.cluster == cluster, found.nodeName == nodeName else {
                // The caller refuses it: nothing is written into somebody else's directory.
                return DataDirectory(
                    path: path, disk: disk, identity: found, incarnation: incarnation, notes: notes,
                    lockFile: lockFile)
            }
            var payload = ByteBuffer()
            payload.writeString("BTNV")
            payload.writeMultipleIntegers(UInt32(1), incarnation.value, endianness: .little)
            try SmallFile.replace("incarnation", in: path, with: payload, on: disk)
            return DataDirectory(
                path: path, disk: disk, identity: found, incarnation: incarnation, notes: notes, lockFile: lockFile)
        } catch {
            try? disk.close(lockFile)
            throw error
        }
    }

    /// Gives the lock back. The spool must be stopped.
    package func close() {
        try? disk.close(lockFile)
    }

    private static func makeDirectory(_ path: String, on disk: any Disk) throws(DiskError) {
        do throws(DiskError) {
            try disk.makeDirectory(path)
        } catch {
            guard error.errno == EEXIST else { throw error }
            return
        }
        // The new name itself has to survive: sync the directory that holds it.
        let parent = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
        try disk.syncDirectory(parent.isEmpty ? "/" : parent)
    }

    private static func openOrCreate(_ path: String, on disk: any Disk) throws(DiskError) -> DiskFile {
        do throws(DiskError) {
            return try disk.open(path, .readWrite)
        } catch {
            guard error.errno == ENOENT else { throw error }
            return try disk.open(path, .create)
        }
    }

    private static func identity(
        at path: String, disk: any Disk, cluster: String, nodeName: String, _ random: () -> UInt64,
        _ notes: inout [String]
    ) throws(DiskError) -> DiskIdentity {
        switch SmallFile.read("\(path)/identity", limit: 4096, from: disk) {
        case .payload(var payload):
            if let found = decodeIdentity(&payload) { return found }
            notes.append("identity file has an unknown format")
        case .damaged:
            notes.append("identity file is damaged")
        case .absent:
            break
        }
        if !notes.isEmpty {
            // Kept for the operator; the configuration says who we are.
            try disk.rename("\(path)/identity", to: "\(path)/identity.damaged")
            notes.append("identity written anew from the configuration")
        }
        let made = DiskIdentity(cluster: cluster, nodeName: nodeName, diskID: random())
        var payload = ByteBuffer()
        payload.writeString("BTNI")
        payload.writeMultipleIntegers(UInt32(1), made.diskID, endianness: .little)
        for text in [cluster, nodeName] {
            payload.writeInteger(UInt16(clamping: text.utf8.count), endianness: .little)
            payload.writeBytes(text.utf8.prefix(Int(UInt16.max)))
        }
        try SmallFile.replace("identity", in: path, with: payload, on: disk)
        return made
    }

    static func decodeIdentity(_ payload: inout ByteBuffer) -> DiskIdentity? {
        guard payload.readString(length: 4) == "BTNI",
            let (version, diskID) = payload.readMultipleIntegers(endianness: .little, as: (UInt32, UInt64).self),
            version == 1, let clusterLength: UInt16 = payload.readInteger(endianness: .little),
            let cluster = payload.readString(length: Int(clusterLength)),
            let nameLength: UInt16 = payload.readInteger(endianness: .little),
            let name = payload.readString(length: Int(nameLength)), payload.readableBytes == 0
        else { return nil }
        return DiskIdentity(cluster: cluster, nodeName: name, diskID: diskID)
    }
}
