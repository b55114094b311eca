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
    /// This disk's own count in it.
    package var tally: UInt64
    /// It was found to be set back, by this disk or by another one's word: only one of a higher `recovery` is to be believed.
    package var isRefused: Bool

    package init(store: UInt64, revision: Int64, recovery: UInt64, tally: UInt64 = 0, isRefused: Bool = false) {
        self.store = store
        self.revision = revision
        self.recovery = recovery
        self.tally = tally
        self.isRefused = isRefused
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
                let (version, store, revision, recovery, tally, refused) = payload.readMultipleIntegers(
                    endianness: .little, as: (UInt32, UInt64, Int64, UInt64, UInt64, UInt8).self),
                version == 1, refused <= 1, payload.readableBytes == 0
            else { return (nil, true) }
            let mark = RegistryMark(
                store: store, revision: revision, recovery: recovery, tally: tally, isRefused: refused == 1)
            return (mark, false)
        }
    }

    package func save(_ mark: RegistryMark) throws(DiskError) {
        var payload = ByteBuffer()
        payload.writeString(Self.magic)
        payload.writeMultipleIntegers(
            UInt32(1), mark.store, mark.revision, mark.recovery, mark.tally, UInt8(mark.isRefused ? 1 : 0),
            endianness: .little)
        try SmallFile.replace(Self.name, in: directory, with: payload, on: disk)
    }
}
