// A node's part in the cluster: performs what `TakeoverState` decides, on a thread of its own.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import Logging
import Metrics
import NIOCore
import Synchronization

/// What a node is in its cluster. `cluster:` of the configuration, checked by BatonNode.
package struct ClusterRuntimeSettings: Sendable {
    package var cluster: String
    package var nodeName: String
    package var me: Drainer
    package var disk: UInt64
    package var copies: Int
    package var lease: TimeSpan
    package var failureDomain: String
    package var weight: Double
    /// Where other nodes reach this one.
    package var address: String
    package var version: String
    package var segmentSize: Int64
    package var segmentsPath: String

    package init(
        cluster: String, nodeName: String, me: Drainer, disk: UInt64, copies: Int, lease: TimeSpan,
        failureDomain: String, weight: Double, address: String, version: String, segmentSize: Int64,
        segmentsPath: String
    ) {
        self.cluster = cluster
        self.nodeName = nodeName
        self.me = me
        self.disk = disk
        self.copies = copies
        self.lease = lease
        self.failureDomain = failureDomain
        self.weight = weight
        self.address = address
        self.version = version
        self.segmentSize = segmentSize
        self.segmentsPath = segmentsPath
    }

    package var member: EnsembleMember { EnsembleMember(node: me.node, diskID: disk) }
}

/// The spool and the copies on this node's disk, once they exist. A class, since it is handed on with every batch of frames.
package final class ClusterParts: Sendable {
    package let spool: any SegmentDraining & ReplicationReceiving
    package let copies: any CopyKeeping
    package let disk: any Disk
    /// The ledger's handle of a segment that the spool holds.
    package let handle: @Sendable (SegmentID) -> UInt32?

    package init(
        spool: any SegmentDraining & ReplicationReceiving, copies: any CopyKeeping, disk: any Disk,
        handle: @escaping @Sendable (SegmentID) -> UInt32?
    ) {
        self.spool = spool
        self.copies = copies
        self.disk = disk
        self.handle = handle
    }
}

/// Frames that belong to others: placement, limits, admin.
package struct ClusterHandlers: Sendable {
    /// On the bulk loop; returns whether it has released, or will release, the frame's credit.
    package var submit: @Sendable (ReceivedFrame, PeerIdentity) -> Void = { _, _ in }
    package var quota: @Sendable (Quota, PeerIdentity) -> Void = { _, _ in }
    package var query: @Sendable (Query, PeerIdentity) -> Void = { _, _ in }
    package var answer: @Sendable (Answer, PeerIdentity) -> Void = { _, _ in }
    /// After each listing, on the cluster's thread.
    package var membership: @Sendable (ClusterView) -> Void = { _ in }
    package var disconnected: @Sendable (NodeID) -> Void = { _ in }
    /// Every 100 ms, on the cluster's thread.
    package var tick: @Sendable () -> Void = {}
    /// Whether all segments of a run that is gone have a drainer that lives, and those of this node are read (PROTOCOL S5).
    package var scanned: @Sendable (Drainer, Bool) -> Void = { _, _ in }
    /// A segment taken over (the ledger's handle) has all its copies again, on the cluster's thread; after it was read.
    package var whole: @Sendable (UInt32) -> Void = { _ in }

    package init() {}
}

/// A takeover, for status and logs.
package struct TakeoverNotice: Hashable, Sendable {
    package let segment: SegmentID
    package let from: Drainer
    package let at: Instant
}

/// One per process. Everything that decides runs on the thread "cluster"; calls from elsewhere are cheap and never block.
/// What has to survive a crash is on the copies' disks and in the control plane; this object begins anew.
package final class ClusterRuntime: Sendable {
    enum Work: Sendable {
        case event(TakeoverEvent)
        case view(ClusterView)
        case setBack(ClusterView)
        case run(@Sendable (inout ClusterDriver) -> Void)
    }

    package let settings: ClusterRuntimeSettings
    package let agent: ControlAgent
    package let replicator: Replicator
    package let permission = DotPermission()
    private let maybeRepeated = Counter(label: PlacementCounts.label(.maybeDuplicate))
    package let transport: PeerTransport
    package let registration: Registration
    let time: any TimeSource
    let logger: Logger
    let mailbox = ThreadMailbox<Work>(capacity: .max)
    let takeovers = ThreadMailbox<TakeoverWork>(capacity: .max)
    let joiners = Mutex<[PeerSessionID: ChunkJoiner]>([:])
    /// Who last sent outcomes of a segment: told when they are synced.
    let drainers = Mutex<[SegmentID: NodeID]>([:])
    /// For late outcomes that wait (T5).
    let late = Mutex(LateRoom())
    private let latest = Mutex<ClusterView?>(nil)
    let notices = Mutex<[TakeoverNotice]>([])
    private let parts = Mutex<ClusterParts?>(nil)
    private let bound = Mutex(ClusterHandlers())
    private let threads = Mutex<[DedicatedThread]>([])
    private let watches = Mutex<[any ControlWatch]>([])
    let marks: RegistryMarkFile?
    let marking = Mutex(Marking())
    /// Two threads may save; held while the file is written.
    let saving = Mutex(())
    let onRestart: @Sendable (ClusterState.RestartReason) -> Void

    /// What blocks for long: reading a segment, removing files.
    enum TakeoverWork: Sendable {
        case adopt(Adoption)
        case release(SegmentID)
        case move(SegmentKey)
        case settleMove(SegmentID, epoch: UInt64, into: SegmentID, alive: Bool)
        case late(SegmentID, ByteBuffer, counted: Int)
        case saveMark
    }

    /// `marks`: where this disk remembers what it has seen of the registry; blocks for reading it.
    package init(
        settings: ClusterRuntimeSettings, plane: any ControlPlane, transport: PeerTransport,
        marks: RegistryMarkFile? = nil, time: any TimeSource, logger: Logger,
        onRestart: @escaping @Sendable (ClusterState.RestartReason) -> Void
    ) {
        self.settings = settings
        self.transport = transport
        self.time = time
        self.logger = logger
        self.onRestart = onRestart
        let (mark, wasDamaged) = marks?.load() ?? (nil, false)
        if wasDamaged {
            logger.error("cluster: \(RegistryMarkFile.name) is damaged: whether etcd was set back cannot be told")
        }
        self.marks = marks
        let paths = ClusterPaths(cluster: settings.cluster)
        let agent = ControlAgent(
            plane, paths: paths, me: settings.me, tally: paths.tally(settings.nodeName, disk: settings.disk), mark: mark
        )
        self.agent = agent
        let mailbox = mailbox
        agent.onChange { why in
            logger.critical("cluster: the control plane is not what it was", metadata: ["why": "\(why)"])
            mailbox.deliver(CollectionOfOne(.event(.registryChanged)))
        }
        self.replicator = Replicator(
            peers: transport, copies: settings.copies, failureDomain: settings.failureDomain,
            segmentSize: settings.segmentSize, time: time, logger: logger
        ) { id, member in
            mailbox.deliver(CollectionOfOne(.run { $0.parts?.spool.lost(id, on: member) }))
        }
        self.registration = Registration(
            agent: agent,
            entry: NodeEntry(
                id: settings.nodeName, incarnation: settings.me.incarnation, disk: settings.disk,
                address: settings.address, failureDomain: settings.failureDomain, weight: settings.weight,
                version: settings.version, state: .joining), disk: settings.disk, lease: settings.lease, time: time,
            logger: logger)
    }

    // MARK: Life

    package func bind(_ parts: ClusterParts) { self.parts.withLock { $0 = parts } }

    package func handlers(_ change: @Sendable (inout ClusterHandlers) -> Void) { bound.withLock { change(&$0) } }

    var handlers: ClusterHandlers { bound.withLock { $0 } }

    var partsIfBound: ClusterParts? { parts.withLock { $0 } }

    /// Listens for peers, starts the thread, registers in the background. Throws what has to be resolved first.
    package func start() async throws {
        try await registration.check()
        try await transport.start(delegate: self)
        guard let parts = partsIfBound else { preconditionFailure("bound before it is started") }
        let made = ClusterDriver(runtime: self, parts: parts)
        threads.withLock { threads in
            threads.append(
                DedicatedThread(name: "cluster") {
                    var driver = made
                    self.run(&driver)
                })
            threads.append(DedicatedThread(name: "takeover") { self.runTakeovers() })
        }
        parts.copies.inventory { self.tell(.started(copies: $0)) }
        Task {
            do {
                try await self.registration.run(
                    registered: {
                        self.logger.notice("cluster: registered", metadata: ["node": "\(self.settings.nodeName)"])
                        self.tell(.registered)
                    }, lost: { self.tell(.leaseLost) })
                await self.registration.announce(.serving)
            } catch {
                self.logger.critical("cluster: this node cannot register", metadata: ["why": "\(error)"])
            }
        }
        for prefix in [agent.paths.nodes, agent.paths.holds, agent.paths.drains] {
            let opened = agent.plane.watch(prefix, after: nil, resync: .seconds(30)) { [mailbox] event in
                guard case .changes = event else { return }
                mailbox.deliver(CollectionOfOne(.event(.hint)))
            }
            if let opened { watches.withLock { $0.append(opened) } }
        }
    }

    /// Leaves: the node's key goes, so that others take over at once. Blocking parts are on their own threads.
    package func stop(forGood: Bool = false) async {
        for watch in watches.withLock({ $0 }) { watch.cancel() }
        await registration.stop(forGood: forGood)
        await transport.stop()
        mailbox.close()
        takeovers.close()
        for thread in threads.withLock({ $0 }) { thread.join() }
        saveMark()
        agent.plane.stop()
    }

    /// Waits until every outcome of this node is settled, so that no taker sends again what was sent; at most `span`. One that is
    /// on its way to the log still has its place in the window.
    package func settle(within span: TimeSpan) async {
        let end = time.now() + span
        while time.now() < end {
            let left = await withCheckedContinuation { continuation in
                let asked = mailbox.deliver(CollectionOfOne(.run { continuation.resume(returning: $0.unsettledLogs) }))
                if !asked { continuation.resume(returning: 0) }
            }
            if left == 0, permission.taken == 0 { return }
            try? await Task.sleep(nanoseconds: 20_000_000)
        }
    }

    /// What the control plane listed last.
    package var view: ClusterView? {
        get { latest.withLock { $0 } }
        set { latest.withLock { $0 = newValue } }
    }

    package var takeoverNotices: [TakeoverNotice] { notices.withLock { $0 } }

    /// Whether the own node key stands, by what was listed last.
    package var isRegistered: Bool {
        view?.nodes.contains { $0.run == settings.me } ?? false
    }

    /// Claims no segment any more; before `stop(forGood:)`. Not taken back.
    package func leave() { tell(.leaving) }

    /// Look at the control plane soon.
    package func refresh() { tell(.hint) }

    func tell(_ event: TakeoverEvent) { mailbox.deliver(CollectionOfOne(.event(event))) }

    // MARK: Threads

    private func run(_ driver: inout ClusterDriver) {
        let interval: Int64 = 100_000_000
        var next = time.now() + TimeSpan(nanoseconds: interval)
        while true {
            let wait = max(0, (next - time.now()).nanoseconds)
            guard let batch = mailbox.take(timeoutNanoseconds: wait) else { return }
            for work in batch { driver.perform(work) }
            let now = time.now()
            if now >= next {
                next = now + TimeSpan(nanoseconds: interval)
                driver.tick(at: now)
            }
        }
    }

    private func runTakeovers() {
        while let batch = takeovers.take(limit: 1) {
            guard let parts = partsIfBound else { return }
            let spool = parts.spool
            for work in batch {
                switch work {
                case .saveMark: saveMark()
                case .release(let id): tell(.unlinked(id, gone: spool.release(id)))
                case .adopt(let adoption): adopt(adoption, by: spool)
                case .move(let key):
                    if !spool.move(key) { tell(.moved(key.id, epoch: key.drainEpoch, landed: false)) }
                case .settleMove(let id, let epoch, let target, let alive):
                    settleMove(of: id, epoch, into: target, alive: alive, parts)
                case .late(let id, let entries, let counted):
                    spool.late(entries, of: id)
                    lateDone(counted)
                }
            }
        }
    }

    private func settleMove(
        of id: SegmentID, _ epoch: UInt64, into target: SegmentID, alive: Bool, _ parts: ClusterParts
    ) {
        let end = parts.spool.settleMove(of: id, epoch: epoch, into: target, alive: alive)
        logger.log(
            level: alive ? .info : .notice,
            alive ? "cluster: segment cleaned" : "cluster: a cleaning came to nothing",
            metadata: ["segment": "\(SegmentName(id))", "into": "\(SegmentName(target))"])
        tell(.moveSettled(id, epoch: epoch, end: end))
    }

    private func adopt(_ adoption: Adoption, by spool: any SegmentDraining) {
        let key = adoption.key
        do throws(SpoolError) {
            let report = try spool.adopt(adoption)
            logger.notice(
                "cluster: segment taken over",
                metadata: [
                    "segment": "\(SegmentName(key.id))", "epoch": "\(key.drainEpoch)",
                    "messages": "\(report.messages)", "recipients": "\(report.liveRecipients)",
                ])
            if adoption.mayRepeat, report.liveMessages > 0 {
                maybeRepeated.increment(by: Int64(report.liveMessages))
                logger.warning(
                    "cluster: outcomes of a segment may be missing: its messages may be delivered twice",
                    metadata: ["segment": "\(SegmentName(key.id))", "messages": "\(report.liveMessages)"])
            }
            tell(.adopted(key.id, epoch: key.drainEpoch, success: true))
        } catch {
            logger.error(
                "cluster: a segment cannot be taken over",
                metadata: ["segment": "\(SegmentName(key.id))", "why": "\(error)"])
            tell(.adopted(key.id, epoch: key.drainEpoch, success: false))
        }
    }
}

extension PeerTransport: PeerSending {}

// MARK: News of spool and copies

extension ClusterRuntime: SegmentNews, CopyNews {
    package func outcomesAdvanced(_ id: SegmentID, epoch: UInt64, end: Int64, synced: Int64, taken: Int) {
        mailbox.deliver(
            CollectionOfOne(.run { $0.outcomesAdvanced(id, epoch, end: end, synced: synced, taken: taken) }))
    }

    package func keyChanged(_ key: SegmentKey) {
        if key.state != .open { replicator.ended(key.id) }
        tell(.keyStored(key))
    }

    package func drained(_ id: SegmentID) { tell(.drained(id)) }

    package func damaged(_ chunk: DamagedChunk) { mailbox.deliver(CollectionOfOne(.run { $0.damaged(chunk) })) }

    package func cleanable(_ ids: [SegmentID], into target: SegmentID) { tell(.cleanable(ids, into: target)) }

    package func moved(_ id: SegmentID, epoch: UInt64, landed: Bool) { tell(.moved(id, epoch: epoch, landed: landed)) }

    package func logSynced(_ id: SegmentID, epoch: UInt64, memory: Int64, synced: Int64) {
        guard let node = drainers.withLock({ $0[id] }) else { return }
        _ = transport.send(
            [
                .recorded(
                    Recorded(
                        segment: id, epoch: epoch, memory: memory, synced: synced,
                        incarnation: settings.me.incarnation))
            ], to: node)
    }
}
