// What a disk holds after the power went at some point of its journal: synced things for sure, the rest by chance.
import BatonCore

/// Rebuilds a disk from the first `cut` operations of a journal. Writes not covered by a sync of their file survive whole, in
/// part (sectors of 512 or 4096 bytes), or not at all; names not covered by a sync of their directory survive as a prefix of
/// what was done there. The seed decides, so that a failure can be repeated.
package enum DiskImage {
    private struct File {
        var safe = MemoryDisk.Inode()
        var pending: [DiskOperation] = []
    }

    private struct Names {
        var safe: [String: Int] = [:]
        var pending: [DiskOperation] = []
    }

    package static func afterPowerLoss(_ journal: [DiskOperation], cut: Int, seed: UInt64) -> MemoryDisk {
        var random = SplitMix64(seed: seed)
        var files: [Int: File] = [:]
        var names = Names()
        var directories: Set<String> = ["", "."]
        for operation in journal.prefix(cut) {
            switch operation {
            case .create(_, let inode):
                files[inode] = File()
                names.pending.append(operation)
            case .write(let inode, _, _), .truncate(let inode, _), .allocate(let inode, _):
                files[inode]?.pending.append(operation)
            case .sync(let inode): settle(&files, inode)
            case .syncAll:
                for inode in files.keys { settle(&files, inode) }
                settleNames(&names) { _ in true }
            case .syncDirectory(let path): settleNames(&names) { directory(of: $0) == path }
            case .unlink, .rename: names.pending.append(operation)
            case .makeDirectory(let path): directories.insert(path)
            case .mark: break
            }
        }
        // A prefix of the directory operations that were not synced.
        let kept = names.pending.isEmpty ? 0 : Int(random.next() % UInt64(names.pending.count + 1))
        for operation in names.pending.prefix(kept) { apply(operation, to: &names.safe) }
        var state = MemoryDisk.State()
        state.directories = directories
        state.names = names.safe
        for inode in Set(names.safe.values) {
            state.inodes[inode] = survivor(files[inode] ?? File(), &random)
        }
        state.nextInode = (files.keys.max() ?? 0) + 1
        return MemoryDisk(state: state)
    }

    private static func settle(_ files: inout [Int: File], _ inode: Int) {
        guard var file = files.removeValue(forKey: inode) else { return }
        for operation in file.pending { apply(operation, to: &file.safe) }
        file.pending.removeAll()
        files[inode] = file
    }

    private static func settleNames(_ names: inout Names, where isCovered: (DiskOperation) -> Bool) {
        var left: [DiskOperation] = []
        for operation in names.pending {
            if isCovered(operation) { apply(operation, to: &names.safe) } else { left.append(operation) }
        }
        names.pending = left
    }

    private static func directory(of operation: DiskOperation) -> String {
        let path: String
        switch operation {
        case .create(let name, _), .unlink(let name): path = name
        case .rename(_, let to): path = to
        default: return ""
        }
        return path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
    }

    private static func apply(_ operation: DiskOperation, to names: inout [String: Int]) {
        switch operation {
        case .create(let path, let inode): names[path] = inode
        case .unlink(let path): names[path] = nil
        case .rename(let from, let to): names[to] = names.removeValue(forKey: from) ?? names[to]
        default: break
        }
    }

    private static func apply(_ operation: DiskOperation, to inode: inout MemoryDisk.Inode) {
        switch operation {
        case .write(_, let offset, let bytes): inode.write(bytes, at: offset)
        case .truncate(_, let length): inode.truncate(to: length)
        case .allocate(_, let length): inode.extend(to: length)
        default: break
        }
    }

    /// Each unsynced operation by chance: all, nothing, or (a write) some of its sectors.
    private static func survivor(_ file: File, _ random: inout SplitMix64) -> MemoryDisk.Inode {
        var inode = file.safe
        for operation in file.pending {
            switch (operation, random.next() % 3) {
            case (_, 0): break
            case (.write(_, let offset, let bytes), 1):
                let sector = random.next() % 2 == 0 ? 512 : 4096
                var at = 0
                while at < bytes.count {
                    // A sector's end is counted from the file's start.
                    let end = min(bytes.count, ((offset + at) / sector + 1) * sector - offset)
                    if random.next() % 2 == 0 { inode.write(Array(bytes[at..<end]), at: offset + at) }
                    at = end
                }
            default: apply(operation, to: &inode)
            }
        }
        return inode
    }
}
