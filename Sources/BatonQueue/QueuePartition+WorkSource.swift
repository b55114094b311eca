// What the delivery side of the same loop calls. One entry into the actor for each batch.
import BatonCore
import BatonModel
import BatonRuntime
import NIOCore

extension QueuePartition: WorkSource {
    package nonisolated func assign(_ destination: DestinationID, to site: SiteID, until: Instant) {
        let now = time.now()
        onLoop { $0.state.assign(destination, to: site, until: until, at: now) }
    }

    /// Names a site for operators, holds and metrics, and gives it its own retry schedule (nil: `queue.retry`). Before its
    /// first `assign`, and again when either changes. On the loop.
    package nonisolated func nameSite(_ site: SiteID, name: [UInt8], retry: RetrySchedule? = nil) {
        onLoop { $0.state.nameSite(site, name: name, retry: retry) }
    }

    /// The delivery side uses this handle no more; ignored while destinations belong to it. On the loop.
    package nonisolated func forgetSite(_ site: SiteID) {
        onLoop { $0.state.forgetSite(site) }
    }

    package nonisolated func deferDestination(_ destination: DestinationID, reply: SMTPReply) {
        let now = time.now()
        onLoop { $0.state.deferDestination(destination, reply: reply, at: now) }
    }

    package nonisolated func deferSite(_ site: SiteID, reply: SMTPReply) {
        let now = time.now()
        onLoop { $0.state.deferSite(site, reply: reply, at: now) }
    }

    package nonisolated func failDestination(_ destination: DestinationID, reply: SMTPReply) {
        onLoop { $0.state.failDestination(destination, reply: reply) }
    }

    package nonisolated func holdDestination(_ destination: DestinationID, until: Instant) {
        onLoop { $0.state.holdDestination(destination, until: until) }
    }

    package nonisolated func pull(_ site: SiteID, transactions: Int, recipients: Int) -> [Transaction] {
        let now = time.now()
        return onLoop { $0.state.pull(site, transactions: transactions, recipients: recipients, at: now) }
    }

    /// `envelope` is not needed: what the decision rests on was noted when the message came.
    package nonisolated func decide(
        _ results: [(JobHandle, AttemptResult)], envelope: Envelope, at now: Instant
    ) -> [RecipientDecision] {
        onLoop { $0.state.decide(results, at: now) }
    }

    package nonisolated func settle(_ handles: [JobHandle]) {
        onLoop { $0.state.settle(handles) }
    }

    package nonisolated func ready(_ site: SiteID) -> Int {
        home.loop.preconditionInEventLoop()
        return assumeIsolated { $0.state.ready(site) }
    }
}
