// One plan in the making: which look-ups it needs next, and the verdict once they are answered.
import BatonCore
import BatonModel

/// A plan's subject.
package struct PlanKey: Hashable, Sendable {
    package enum Kind: Sendable {
        /// A domain's mail exchangers.
        case exchangers
        /// The addresses of a route's host: no MX, private addresses allowed, ourselves not excluded.
        case host
    }

    package let name: [UInt8]
    package let kind: Kind
}

/// Collects the answers for one plan. A pure value; holds its answers itself, so that a TTL of 0 does not starve it.
package struct PlanBuilder: Sendable {
    package enum Step: Sendable {
        /// Ask these; more answers are needed.
        case ask([DNSQuestion])
        /// Questions asked before are still open.
        case wait
        case done(MXPlan)
    }

    private let key: PlanKey
    private let settings: PlanSettings
    private var candidates: [MXCandidate] = []
    /// How many candidates' addresses have been asked for.
    private var asked = 0
    /// First candidate of the batch that is under way.
    private var batchStart = 0
    private var open: Set<DNSQuestion> = []
    private var addresses: [[UInt8]: [IPAddress]] = [:]
    private var ownPreference: UInt16?
    private var failure: LookupFailure?
    private var ourFault: LookupFailure?
    private var secure = true
    private var expires = Instant.distantFuture

    package init(_ key: PlanKey, settings: PlanSettings) {
        self.key = key
        self.settings = settings
    }

    package mutating func start() -> Step {
        switch key.kind {
        case .exchangers:
            let question = DNSQuestion(name: key.name, type: .mx)
            open = [question]
            return .ask([question])
        case .host:
            candidates = [MXCandidate(preference: 0, name: key.name)]
            return askNextBatch()
        }
    }

    package mutating func receive(
        _ question: DNSQuestion, _ value: CachedAnswer, at now: Instant, using random: inout SplitMix64
    ) -> Step {
        guard open.remove(question) != nil else { return .wait }
        expires = min(expires, value.expires)
        secure = secure && value.answer.secure
        if question.type == .mx { return receivedExchangers(value.answer, at: now, using: &random) }
        switch value.answer.content {
        case .addresses(let found): addresses[question.name, default: []] += found
        case .failed(let why): note(why)
        case .noData, .noSuchName, .exchangers, .other: break
        }
        return open.isEmpty ? finishBatch(at: now, using: &random) : .wait
    }

    private mutating func note(_ why: LookupFailure) {
        if why.isOurs { ourFault = ourFault ?? why } else { failure = failure ?? why }
    }

    private mutating func receivedExchangers(
        _ answer: DNSAnswer, at now: Instant, using random: inout SplitMix64
    ) -> Step {
        switch answer.content {
        case .failed(let why):
            return done(why.isOurs ? .resolverDown : .temporary(reason: text(of: why)), at: now)
        case .noSuchName: return done(.noSuchDomain, at: now)
        case .exchangers(let records):
            switch MXSelection.of(records, settings: settings, using: &random) {
            case .nullMX: return done(.nullMX, at: now)
            case .noUsableTarget: return done(.noAddress, at: now)
            case .mailLoop: return done(.mailLoop, at: now)
            case .candidates(let chosen): candidates = chosen
            }
        case .noData:
            // The implicit MX (RFC 5321 5.1), only where there is no MX record at all.
            if settings.ownNames.contains(key.name) { return done(.mailLoop, at: now) }
            if DomainName.isLocalhost(key.name), !settings.allowPrivateAddresses { return done(.noAddress, at: now) }
            candidates = [MXCandidate(preference: 0, name: key.name)]
        case .addresses, .other: return done(.temporary(reason: text(of: .malformed)), at: now)
        }
        return askNextBatch()
    }

    private mutating func askNextBatch() -> Step {
        batchStart = asked
        asked = min(candidates.count, asked + DNSLimits.hostsAtOnce)
        var questions: [DNSQuestion] = []
        for candidate in candidates[batchStart..<asked] {
            for type in settings.addressFamily.types {
                questions.append(DNSQuestion(name: candidate.name, type: type))
            }
        }
        open = Set(questions)
        return .ask(questions)
    }

    private mutating func finishBatch(at now: Instant, using random: inout SplitMix64) -> Step {
        let isRoute = key.kind == .host
        var hosts: [MXHost] = []
        if !isRoute { noteOurselves() }
        for candidate in candidates[batchStart..<asked] {
            if let ownPreference, candidate.preference >= ownPreference { continue }
            var usable = addresses[candidate.name] ?? []
            if !isRoute, !settings.allowPrivateAddresses { usable.removeAll(where: \.isPrivate) }
            usable = MXSelection.ordered(usable, by: settings.addressFamily, using: &random)
            guard !usable.isEmpty else { continue }
            hosts.append(MXHost(preference: candidate.preference, name: candidate.name, addresses: usable))
        }
        if !hosts.isEmpty { return done(.hosts(hosts), at: now) }
        let cut = ownPreference.map { own in candidates.count(where: { $0.preference < own }) } ?? candidates.count
        if asked < cut { return askNextBatch() }
        if ourFault != nil { return done(.resolverDown, at: now) }
        if let failure { return done(.temporary(reason: text(of: failure)), at: now) }
        return done(cut == 0 ? .mailLoop : .noAddress, at: now)
    }

    /// A host at one of our own addresses is us (RFC 5321 5.1): its preference and all worse ones go.
    private mutating func noteOurselves() {
        guard !settings.ownAddresses.isEmpty else { return }
        for candidate in candidates[batchStart..<asked] {
            let found = addresses[candidate.name] ?? []
            guard found.contains(where: { settings.ownAddresses.contains($0) }) else { continue }
            ownPreference = min(ownPreference ?? .max, candidate.preference)
        }
    }

    private func done(_ verdict: MXPlan.Verdict, at now: Instant) -> Step {
        .done(MXPlan(verdict: verdict, expires: max(expires, now + DNSLimits.planMin), secure: secure))
    }

    private func text(of failure: LookupFailure) -> String {
        let name = String(decoding: key.name, as: UTF8.self)
        return key.kind == .host
            ? "\(failure.text) for host \(name)" : "\(failure.text) for the mail servers of \(name)"
    }
}
