// When a watch lists, opens its stream, tells, and distrusts its stream. Pure.
import BatonCore

/// Lists are linearizable and carry the truth; the stream brings changes soon. Everything told is in order of revision, each
/// revision once. What is due at `nextDue` the shell asks for by `woke`.
struct EtcdWatchState: StateMachine {
    enum Event: Sendable {
        case begun
        case listed(Result<ControlListing, ControlFailure>)
        case opened(ControlHeader)
        case changes([ControlChange])
        /// The stream is over, or useless.
        case ended(String)
        /// The revision that the stream was to begin at is gone.
        case compacted
        /// etcd refused or ended the watch.
        case cancelled(String)
        case woke
    }

    enum Action: Sendable {
        case list
        /// A new stream, instead of an old one.
        case open(after: ControlRevision)
        case close
        /// The member in use is left.
        case leaveMember
        /// The token may be the reason.
        case renewToken
        case tell(ControlWatchEvent)
    }

    private enum Stream {
        case closed
        case opening
        case open
    }

    private let resync: TimeSpan
    /// Everything up to it has been told.
    private var seen: ControlRevision?
    private var store: UInt64?
    private var stream = Stream.closed
    private var isListing = false
    private var nextList: Instant?
    private var reopenAt: Instant?
    /// A stream that is not open by then is given up.
    private var openBy: Instant?
    private var retry = ControlLimits.watchRetryFirst
    /// The newest change that the stream itself has brought, and what a listing says that it has to bring, until when.
    private var streamed: ControlRevision = 0
    private var expected: (revision: ControlRevision, by: Instant)?

    init(after: ControlRevision?, resync: TimeSpan) {
        self.seen = after
        self.resync = min(ControlLimits.resyncMax, max(ControlLimits.resyncMin, resync))
    }

    var nextDue: Instant? {
        [isListing ? nil : nextList, reopenAt, openBy, expected?.by].compactMap { $0 }.min()
    }

    mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        switch event {
        case .begun:
            nextList = now + resync
            resume(at: now, into: &actions)
        case .listed(.success(let listing)): listed(listing, at: now, into: &actions)
        case .listed(.failure(let failure)):
            isListing = false
            nextList = now + retry
            backOff()
            actions.append(.tell(.interrupted("no listing: \(failure)")))
        case .opened(let header): opened(header, at: now, into: &actions)
        case .changes(let changes): changed(changes, into: &actions)
        case .ended(let text): broken(text, at: now, into: &actions)
        case .cancelled(let text):
            actions.append(.renewToken)
            broken(text, at: now, into: &actions)
        case .compacted:
            close(into: &actions)
            list(into: &actions)
        case .woke: woke(at: now, into: &actions)
        }
    }

    private mutating func listed(_ listing: ControlListing, at now: Instant, into actions: inout ActionBuffer<Action>) {
        isListing = false
        nextList = now + resync
        retry = ControlLimits.watchRetryFirst
        let other = store.map { $0 != listing.header.store } ?? false
        let wentBack = other || (seen.map { $0 > listing.header.revision } ?? false)
        actions.append(.tell(.snapshot(listing, wentBack: wentBack)))
        store = listing.header.store
        seen = listing.header.revision
        if wentBack { close(into: &actions) }
        switch stream {
        case .closed: if reopenAt == nil || wentBack { resume(at: now, into: &actions) }
        case .opening: break
        case .open:
            let newest = listing.entries.map(\.modified).max() ?? 0
            if newest > streamed, expected == nil { expected = (newest, now + ControlLimits.watchGrace) }
        }
    }

    private mutating func opened(_ header: ControlHeader, at now: Instant, into actions: inout ActionBuffer<Action>) {
        guard case .opening = stream else { return }
        if let store, store != header.store { return broken("another cluster answers", at: now, into: &actions) }
        store = header.store
        stream = .open
        openBy = nil
        retry = ControlLimits.watchRetryFirst
        // What was told before the stream is not expected of it.
        streamed = seen ?? 0
        // Either this member lags, or the store went back: only a listing can tell.
        if let seen, header.revision < seen { list(into: &actions) }
    }

    private mutating func changed(_ changes: [ControlChange], into actions: inout ActionBuffer<Action>) {
        guard case .open = stream else { return }
        let seen = seen ?? 0
        // 3.4 may bring a change twice.
        let new = changes.filter { $0.revision > seen }
        for change in changes { streamed = max(streamed, change.revision) }
        if let expected, streamed >= expected.revision { self.expected = nil }
        guard let last = new.map(\.revision).max() else { return }
        self.seen = last
        actions.append(.tell(.changes(new)))
    }

    private mutating func broken(_ text: String, at now: Instant, into actions: inout ActionBuffer<Action>) {
        close(into: &actions)
        actions.append(.leaveMember)
        actions.append(.tell(.interrupted(text)))
        reopenAt = now + retry
        backOff()
    }

    private mutating func woke(at now: Instant, into actions: inout ActionBuffer<Action>) {
        if let openBy, openBy <= now { broken("the stream was not opened in time", at: now, into: &actions) }
        if let expected, expected.by <= now { broken("the stream is behind the store", at: now, into: &actions) }
        if let nextList, nextList <= now { list(into: &actions) }
        if let reopenAt, reopenAt <= now { resume(at: now, into: &actions) }
    }

    /// Goes on with the stream, or with a listing where nothing was seen yet.
    private mutating func resume(at now: Instant, into actions: inout ActionBuffer<Action>) {
        reopenAt = nil
        guard let seen else { return list(into: &actions) }
        guard case .closed = stream else { return }
        stream = .opening
        openBy = now + ControlLimits.watchOpening
        actions.append(.open(after: seen))
    }

    private mutating func list(into actions: inout ActionBuffer<Action>) {
        guard !isListing else { return }
        isListing = true
        actions.append(.list)
    }

    private mutating func close(into actions: inout ActionBuffer<Action>) {
        expected = nil
        openBy = nil
        guard case .closed = stream else {
            stream = .closed
            return actions.append(.close)
        }
    }

    private mutating func backOff() { retry = min(ControlLimits.watchRetryMax, retry + retry) }
}
