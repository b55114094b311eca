// What this disk remembers of the cluster's registry, so that one that was set back is noticed (docs/decisions/0010).
import BatonCore
import BatonRuntime
import NIOCore

/// The newest that was seen of a registry.
package struct RegistryMark: Hashable, Sendable {
    /// The store's id.
    package var store: UInt64
    /// The highest revision of its answers.
    package var revision: Int64
    /// How often it was rebuilt from the disks.
    package var recovery: UInt64

    package init(store: UInt64, revision: Int64, recovery: UInt64) {
        self.store = store
        self.revision = revision
        self.recovery = recovery
    }
}

/// The file `registry-seen` of a data directory. Any thread; both calls block. What was saved survives every crash; a crash
/// while it is saved leaves the old or the new one.
package struct RegistryMarkFile: Sendable {
    package static let name = "registry-seen"
    private static let magic = "BTNS"

    private let directory: String
    private let disk: any Disk

    package init(_ directory: DataDirectory) {
        self.directory = directory.path
        self.disk = directory.disk
    }

    /// - Returns: the mark, nil where there is none; whether a file was there that says nothing.
    package func load() -> (mark: RegistryMark?, wasDamaged: Bool) {
        switch SmallFile.read("\(directory)/\(Self.name)", limit: 4096, from: disk) {
        case .absent: return (nil, false)
        case .damaged: return (nil, true)
        case .payload(var payload):
            guard payload.readString(length: 4) == Self.magic,
                let (version, store, revision, recovery) = payload.readMultipleIntegers(
                    endianness: .little, as: (UInt32, UInt64, Int64, UInt64).self),
                version == 1, payload.readableBytes == 0
            else { return (nil, true) }
            return (RegistryMark(store: store, revision: revision, recovery: recovery), false)
        }
    }

    package func save(_ mark: RegistryMark) throws(DiskError) {
        var payload = ByteBuffer()
        payload.writeString(Self.magic)
        payload.writeMultipleIntegers(
            UInt32(1), mark.store, mark.revision, mark.recovery, endianness: .little)
        try SmallFile.replace(Self.name, in: directory, with: payload, on: disk)
    }
}
