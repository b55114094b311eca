// What the runtime remembers of the registry, and what it does about one that was set back (docs/decisions/0010).
import BatonCore
import BatonRuntime
import BatonSpool
import Logging
import Synchronization

/// Between two listings of a registry that is not believed.
struct DistrustPause: Sendable {
    private var since: Instant?

    mutating func begin(at now: Instant) { since = now }

    /// Once after each beginning: the next listing is due.
    mutating func isOver(at now: Instant) -> Bool {
        guard let since, now - since >= DriverLimits.distrustPause else { return false }
        self.since = nil
        return true
    }
}

extension ClusterRuntime {
    /// What was written of the registry's mark, and what operators were told.
    struct Marking {
        var saved: RegistryMark?
        var savedAt = Instant.epoch
        var toldOf: String?

        /// The mark is to be written now.
        mutating func isDue(_ mark: RegistryMark?, at now: Instant) -> Bool {
            guard mark != saved, now - savedAt >= DriverLimits.markPause else { return false }
            savedAt = now
            return true
        }
    }

    /// At each tick: what is newly known of the registry is written soon, by the takeovers' thread, and the tally counts on.
    func remember(_ extent: @autoclosure () -> RegistryTally.Extent, at now: Instant) {
        let (mark, takeovers) = (agent.trust.mark, takeovers)
        let isDue = marking.withLock { $0.isDue(mark, at: now) }
        if isDue { takeovers.deliver(CollectionOfOne(.saveMark)) }
        agent.count(extent(), at: now) { takeovers.deliver(CollectionOfOne(.saveMark)) }
    }

    /// Blocking.
    func saveMark() {
        guard let marks else { return }
        saving.withLock { _ in
            guard let mark = agent.trust.mark, marking.withLock({ $0.saved != mark }) else { return }
            do throws(DiskError) {
                try marks.save(mark)
                marking.withLock { $0.saved = mark }
            } catch {
                logger.error("cluster: \(RegistryMarkFile.name) cannot be written", metadata: ["why": "\(error)"])
            }
        }
    }

    /// The listing was not believed: said once, and kept, so that the next run believes it no more.
    func distrust() {
        guard let why = agent.obstacle else { return }
        let isNews = marking.withLock { marking in
            defer { marking.toldOf = why }
            return marking.toldOf == nil
        }
        guard isNews else { return }
        logger.critical("cluster: nothing is taken over, delivered or accepted: \(why)")
        takeovers.deliver(CollectionOfOne(.saveMark))
    }

    /// A listing was believed.
    func trusts() { marking.withLock { $0.toldOf = nil } }
}
