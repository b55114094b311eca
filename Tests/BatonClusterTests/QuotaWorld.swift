// A cluster of QuotaStates with clocks that differ, a roster behind a bad network, crashes, joins and removals, and one who adds up.
import BatonCore
import BatonPeer

@testable import BatonCluster

/// One seeded run over one limit. After every single step the sum of what the nodes may use is held against it.
struct QuotaWorld {
    enum Step {
        case tick(Int)
        case read(Int)
        case readAt(Int, asked: Instant)
        case readDone(Int, run: UInt64, QuotaRoster, asked: Instant)
        case propose(QuotaRoster)
        case frame(Quota, from: Int, to: Int)
        case demand(Int)
        case fault
        case crash(Int)
        case start(Int)
        case serving(Int)
        case join(Int)
        case remove(Int)
        case heal
    }

    struct Station {
        let rate: Double
        let offset: Int64
        var state: QuotaState?
        var run: UInt64 = 0
        var wanted: UInt64 = 0
        var cutOff = false
    }

    static let span = 90_000
    static let site = Array("site".utf8)

    var random: SplitMix64
    let guards: QuotaGuards
    let limit: UInt64
    let key: QuotaKey
    var now: Int64 = 0
    var steps: [(at: Int64, number: Int, step: Step)] = []
    var number = 0
    var stations: [Station] = []
    var roster: QuotaRoster
    var cut: Set<Int> = []
    var quiet = false
    var violation: String?
    var most: UInt64 = 0
    var holders: Set<Int> = []
    var longest: [Int: Int64] = [:]
    var grants = 0
    var lent = 0
    /// Set by a test that looks at a calm cluster only.
    var calm = false
    var fixedDemand: [Int: UInt64]?
    /// The first node makes the roster, the others join it.
    var founds = false
    /// More faults, and of those more that change the roster.
    var churn = false

    init(
        seed: UInt64, guards: QuotaGuards = .all, kind: Quota.Kind = .connections, limit: UInt64? = nil, nodes: Int = 6,
        members: Int = 3
    ) {
        random = SplitMix64(seed: seed)
        self.guards = guards
        let drawn = 1 + random.next() % 30
        self.limit = limit ?? (kind == .rate ? drawn * 2_500 : drawn)
        key = QuotaKey(site: Self.site, kind: kind)
        roster = QuotaRoster(
            sequence: 1, members: (0..<members).map { QuotaMember(node: NodeID(value: UInt64($0) + 1)) })
        for _ in 0..<nodes {
            stations.append(
                Station(
                    rate: 0.93 + 0.14 * random.unit(), offset: Int64(random.next() % 1_000_000_000_000), state: nil))
        }
    }

    mutating func chance(_ part: Double) -> Bool { random.unit() < part }
    mutating func below(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }
    mutating func span(_ low: Int, _ high: Int) -> Int64 { Int64(low + below(high - low + 1)) * 1_000_000 }
    func node(_ index: Int) -> NodeID { NodeID(value: UInt64(index) + 1) }
    func local(_ index: Int) -> Instant {
        Instant(nanoseconds: stations[index].offset + Int64(Double(now) * stations[index].rate))
    }

    mutating func play(milliseconds: Int = QuotaWorld.span) {
        if founds {
            let others = roster.members.indices.dropFirst()
            roster = .first(node(0), weight: 1)
            for index in others { add(.join(index), after: span(0, 3_000)) }
        }
        for index in stations.indices where index < roster.members.count { start(index) }
        if !calm {
            for _ in 0..<(churn ? 80 : 25) { add(.fault, after: span(0, milliseconds * 2 / 3)) }
            add(.heal, after: Int64(milliseconds) * 666_666)
        }
        run(to: Int64(milliseconds) * 1_000_000)
    }

    /// Goes on after `play`.
    mutating func play(untilSecond second: Int) { run(to: Int64(second) * 1_000_000_000) }

    private mutating func run(to end: Int64) {
        while violation == nil, let first = steps.first, first.at <= end, let next = takeFirst() {
            now = next.at
            perform(next.step)
            add()
        }
        now = end
    }

    // MARK: Steps

    mutating func add(_ step: Step, after span: Int64) {
        number += 1
        steps.append((now + span, number, step))
        var child = steps.count - 1
        while child > 0, Self.precedes(steps[child], steps[(child - 1) / 2]) {
            steps.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    private static func precedes(
        _ left: (at: Int64, number: Int, step: Step), _ right: (at: Int64, number: Int, step: Step)
    ) -> Bool { (left.at, left.number) < (right.at, right.number) }

    private mutating func takeFirst() -> (at: Int64, number: Int, step: Step)? {
        guard let first = steps.first, let last = steps.popLast() else { return nil }
        guard !steps.isEmpty else { return first }
        steps[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < steps.count {
                if Self.precedes(steps[child], steps[least]) { least = child }
            }
            guard least != parent else { return first }
            steps.swapAt(least, parent)
            parent = least
        }
    }

    mutating func perform(_ step: Step) {
        switch step {
        case .tick(let index):
            post(.tick, index)
            if stations[index].state != nil { add(.tick(index), after: 250_000_000) }
        case .read(let index):
            guard stations[index].state != nil else { return }
            add(.readAt(index, asked: local(index)), after: delay())
            add(.read(index), after: span(700, 1_300))
        case .readAt(let index, let asked):
            guard !stations[index].cutOff, stations[index].state != nil else { return }
            add(.readDone(index, run: stations[index].run, roster, asked: asked), after: delay())
        case .readDone(let index, let run, let roster, let asked):
            if stations[index].run == run { post(.roster(roster, askedAt: asked), index) }
        case .propose(let proposal): if proposal.sequence == roster.sequence + 1 { roster = proposal }
        case .frame(let message, let from, let to):
            if !cut.contains(from * 100 + to) { post(.received(message, from: node(from)), to) }
        case .demand(let index):
            guard stations[index].state != nil else { return }
            if let fixed = fixedDemand {
                stations[index].wanted = fixed[index] ?? 0
            } else {
                stations[index].wanted = chance(0.4) ? 0 : chance(0.5) ? limit : random.next() % (limit + 1)
            }
            post(.demand(key, limit: limit, wanted: stations[index].wanted), index)
            add(.demand(index), after: fixedDemand != nil ? 1_000_000_000 : span(500, 6_000))
        case .fault: fault()
        case .crash(let index): crash(index)
        case .start(let index): if stations[index].state == nil { start(index) }
        case .serving(let index): serving(index)
        case .join(let index):
            if roster[node(index)] == nil {
                change { $0.members.append(QuotaMember(node: NodeID(value: UInt64(index) + 1))) }
            }
            if stations[index].state == nil { start(index) }
        case .remove(let index):
            if stations[index].state == nil { change { $0.members.removeAll { $0.node.value == UInt64(index) + 1 } } }
        case .heal:
            cut = []
            quiet = true
            for index in stations.indices {
                stations[index].cutOff = false
                if roster[node(index)] != nil { add(.start(index), after: 0) }
            }
        }
    }

    mutating func delay() -> Int64 { !calm && !quiet && chance(0.08) ? span(200, 6_000) : span(0, 20) }

    mutating func change(_ edit: (inout QuotaRoster) -> Void) {
        var next = roster
        edit(&next)
        guard next.members != roster.members, !next.members.isEmpty else { return }
        next.sequence += 1
        roster = next
    }

    mutating func start(_ index: Int) {
        stations[index].run = random.next()
        var state = QuotaState(own: node(index), seed: stations[index].run, startedAt: local(index), guards: guards)
        var none = ActionBuffer<QuotaAction>()
        state.receive(.settings(QuotaSettings(connections: limit, limits: [key: limit])), at: local(index), into: &none)
        stations[index].state = state
        add(.read(index), after: span(0, 300))
        add(.tick(index), after: span(0, 250))
        add(.demand(index), after: span(0, 2_000))
        serving(index)
    }

    /// The control plane's view of leases: a node that is down or cut off for long is not serving.
    mutating func serving(_ index: Int) {
        let lives = stations[index].state != nil && !stations[index].cutOff
        change { roster in
            for at in roster.members.indices where roster.members[at].node.value == UInt64(index) + 1 {
                roster.members[at].serving = lives
            }
        }
    }

    mutating func fault() {
        let index = below(stations.count)
        switch churn && chance(0.5) ? [1, 2, 5][below(3)] : below(6) {
        case 0:
            crash(index)
            if chance(0.2), roster.members.count > 2 {
                add(.remove(index), after: span(10, 8_000))
            } else {
                add(.start(index), after: span(50, 8_000))
            }
        case 1:
            stations[index].cutOff = true
            add(.serving(index), after: span(1_000, 5_000))
        case 2:
            stations[index].cutOff = false
            add(.serving(index), after: span(100, 2_000))
        case 3:
            let other = below(stations.count)
            cut.insert(index * 100 + other)
            if chance(0.6) { cut.insert(other * 100 + index) }
        case 4: cut = []
        default: add(.join(index), after: 0)
        }
    }

    mutating func crash(_ index: Int) {
        guard stations[index].state != nil else { return }
        stations[index].state = nil
        stations[index].run = 0
        add(.serving(index), after: span(500, 4_000))
    }

    mutating func post(_ event: QuotaEvent, _ index: Int) {
        guard stations[index].state != nil else { return }
        var actions = ActionBuffer<QuotaAction>()
        let at = local(index)
        stations[index].state?.receive(event, at: at, into: &actions)
        for action in actions.actions {
            switch action {
            case .send(let message, let to):
                if message.verb == .grant, message.share != 0 { grants += 1 }
                if message.verb == .grant, message.share != 0, roster.home(of: Self.site) != node(index) { lent += 1 }
                if !calm, !quiet, chance(0.05) { continue }
                add(.frame(message, from: index, to: Int(to.value) - 1), after: delay())
                if !calm, chance(0.04) {
                    add(.frame(message, from: index, to: Int(to.value) - 1), after: span(10, 9_000))
                }
            case .propose(let proposal): if !stations[index].cutOff { add(.propose(proposal), after: delay()) }
            }
        }
    }

    // MARK: Adding up

    func use(_ index: Int) -> UInt64 {
        stations[index].state?.allowance(of: key, limit: limit, at: local(index)) ?? 0
    }

    mutating func add() {
        var sum: UInt64 = 0
        for index in stations.indices {
            let used = use(index)
            sum += used
            if used > 0 {
                holders.insert(index)
                longest[index] = longest[index] ?? now
            } else {
                longest[index] = nil
            }
        }
        most = max(most, sum)
        if sum > limit {
            violation =
                "at \(Double(now) / 1e9) s: \(sum) of \(limit): \(stations.indices.map { use($0) }), roster \(roster)"
        }
        if !roster.isSound { violation = "roster \(roster)" }
    }
}
