// What the runtime remembers of the registry, and what it does about one that was set back (docs/decisions/0010).
import BatonCore
import BatonRuntime
import BatonSpool
import Logging
import Synchronization

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

    /// After each listing that was believed: written soon, by the takeovers' thread.
    func remember(_ view: ClusterView) {
        let (now, mark) = (time.now(), agent.trust.mark)
        let isDue = marking.withLock { marking in
            marking.toldOf = nil
            return marking.isDue(mark, at: now)
        }
        let takeovers = takeovers
        if isDue { takeovers.deliver(CollectionOfOne(.saveMark)) }
        agent.tally(view, at: now) { takeovers.deliver(CollectionOfOne(.saveMark)) }
    }

    /// Blocking.
    func saveMark() {
        guard let marks, let mark = agent.trust.mark, marking.withLock({ $0.saved != mark }) else { return }
        do throws(DiskError) {
            try marks.save(mark)
            marking.withLock { $0.saved = mark }
        } catch {
            logger.error("cluster: \(RegistryMarkFile.name) cannot be written", metadata: ["why": "\(error)"])
        }
    }

    /// The listing was not believed: said once.
    func distrust() {
        guard let why = agent.obstacle else { return }
        let isNews = marking.withLock { marking in
            defer { marking.toldOf = why }
            return marking.toldOf == nil
        }
        if isNews { logger.critical("cluster: nothing is taken over, delivered or accepted: \(why)") }
    }
}
