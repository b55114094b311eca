// One copy of a segment as its keeper decides about it: fence, prefix, outcome logs by epoch. Pure.
import BatonCore
import BatonModel

/// What the seal's file says.
enum CopySealFile: Hashable, Sendable {
    case none
    /// The highest epoch at which the copy was sealed.
    case sealed(UInt64)
    /// Its octets are not what was written: the copy was sealed, nobody knows at which epoch.
    case rotten

    /// What is known of the epoch; 0 for nothing.
    var epoch: UInt64 {
        if case .sealed(let epoch) = self { epoch } else { 0 }
    }
}

/// The backup's rules (PROTOCOL "Append and seal", P4, "Takeover" 2). Knows offsets only; its shell is `CopyStore`.
struct CopyState: Hashable, Sendable {
    /// End of the valid prefix, and how much of it is fdatasync'ed.
    private(set) var end: Int64
    private(set) var synced: Int64
    /// Something stands behind the prefix that is not valid: a copy alone cannot tell what stood there (T1).
    private(set) var tailInvalid: Bool
    /// Epochs below it are refused. It binds from the request on, before it is on the disk.
    private(set) var fence: UInt64
    /// The epoch of the seal on the disk: below the fence while that is on its way, or after it has failed.
    private(set) var persisted: UInt64
    /// The seal on the disk is rotten: nothing is taken before a new one is on the disk.
    private(set) var isSealRotten: Bool
    private(set) var logs: [UInt64: Log] = [:]
    /// A write or fdatasync failed: nothing more is taken (never retried).
    private(set) var failed = false

    struct Log: Hashable, Sendable {
        var memory: Int64 = 0
        var synced: Int64 = 0
    }

    init(end: Int64, tailInvalid: Bool, seal: CopySealFile) {
        self.end = end
        self.synced = end
        self.tailInvalid = tailInvalid
        self.fence = seal.epoch
        self.persisted = seal.epoch
        self.isSealRotten = seal == .rotten
    }

    /// Whether it was ever sealed, as far as its disk tells.
    var isSealed: Bool { fence > 0 || isSealRotten }

    enum Append: Hashable, Sendable {
        case write
        /// It is there: durable once everything before its end is synced.
        case repeated
        case sealed(UInt64)
        /// A hole before it, an invalid tail, or a chunk that overlaps what is here.
        case ignore
        case failed
    }

    /// The writer's epoch is the lowest there is: any seal refuses it.
    func decide(append offset: Int64, end chunkEnd: Int64) -> Append {
        if fence > 0 { return .sealed(fence) }
        if failed || isSealRotten { return .failed }
        if chunkEnd <= end { return .repeated }
        // The prefix rule: nothing is durable behind a hole, nor behind what cannot be read.
        return offset == end && !tailInvalid ? .write : .ignore
    }

    mutating func wrote(to newEnd: Int64) { end = max(end, newEnd) }

    mutating func synced(to newEnd: Int64) { synced = max(synced, min(newEnd, end)) }

    mutating func fail() { failed = true }

    /// Nil, or the higher epoch that has sealed it. A rotten seal makes way: whoever asks has claimed its epoch by
    /// compare-and-set. But an epoch that has a log here was obeyed, and no lower one is again.
    mutating func seal(at epoch: UInt64) -> UInt64? {
        let highest = isSealRotten ? max(fence, logs.keys.max() ?? 0) : fence
        guard epoch >= highest else { return highest }
        fence = epoch
        return nil
    }

    mutating func sealPersisted(_ epoch: UInt64) {
        persisted = max(persisted, epoch)
        isSealRotten = false
    }

    /// Found again on the disk, after a seal or a repair.
    mutating func rescanned(end: Int64, tailInvalid: Bool) {
        self.end = end
        self.synced = end
        self.tailInvalid = tailInvalid
    }

    // MARK: Outcomes

    enum Record: Hashable, Sendable {
        /// Octets from this many on are new.
        case write(skipping: Int)
        case sealed(UInt64)
        case gap
        case failed
    }

    func decide(record epoch: UInt64, from offset: Int64, count: Int) -> Record {
        // Whoever was taken over writes no outcomes here any more.
        let newest = logs.keys.max() ?? 0
        if epoch < max(fence, newest) { return .sealed(max(fence, newest)) }
        if failed || isSealRotten { return .failed }
        let memory = logs[epoch]?.memory ?? 0
        guard offset <= memory else { return .gap }
        return .write(skipping: Int(clamping: min(memory - offset, Int64(count))))
    }

    mutating func recorded(_ epoch: UInt64, to end: Int64) {
        logs[epoch, default: Log()].memory = max(log(epoch).memory, end)
    }

    mutating func recordsSynced(_ epoch: UInt64, to end: Int64) {
        logs[epoch, default: Log()].synced = max(log(epoch).synced, end)
    }

    /// A log that was found on the disk, and has been fdatasync'ed since.
    mutating func found(_ epoch: UInt64, length: Int64) { logs[epoch] = Log(memory: length, synced: length) }

    func log(_ epoch: UInt64) -> Log { logs[epoch] ?? Log() }
}
