// Who goes first: sender classes by deficit round robin, then destinations, then first in first out.
import BatonCore
import BatonModel
import Testing

@testable import BatonQueue

@Test func bulkHoldsUpPriorityMail() {
    let harness = Harness()
    for number in 0..<5_000 {
        harness.receive(message(UInt32(number), to: ["u\(number)@giant.test"], senderClass: 1))
    }
    _ = harness.pull(siteA, 20)
    harness.receive(
        message(9_001, to: ["vip@giant.test"], senderClass: 2), message(9_002, to: ["vip@giant.test"], senderClass: 2))
    var pulls = 0
    var found: Set<UInt32> = []
    while found.count < 2, pulls < 100 {
        pulls += 1
        found.formUnion(harness.pull(siteA, 1).map(\.message.record).filter { $0 > 9_000 })
    }
    #expect(found.count == 2)
    #expect(pulls <= ReadyBoard.quantum + 2, "priority mail waited for \(pulls) transactions")
    #expect(harness.violations() == [])
}

@Test func largeTransactionsWinMoreThanTheirShare() {
    // One class sends 100 recipients a transaction, another one: over time both get as many recipients out.
    let harness = Harness()
    for number in 0..<60 {
        harness.receive(message(UInt32(number), to: (0..<100).map { "u\($0)@giant.test" }, senderClass: 1))
    }
    for number in 0..<3_000 {
        harness.receive(message(UInt32(10_000 + number), to: ["u@giant.test"], senderClass: 2))
    }
    var sent: [Bool: Int] = [:]
    for transaction in harness.pull(siteA, 1_010) {
        sent[transaction.message.record >= 10_000, default: 0] += transaction.recipients.count
    }
    let ratio = Double(sent[false, default: 0]) / Double(sent[true, default: 1])
    #expect(ratio > 0.8 && ratio < 1.25, "shares \(sent)")
}

@Test func largeBodiesCostNothing() {
    #expect(ReadyBoard.cost(recipients: 1, size: 1024) == 1)
    #expect(ReadyBoard.cost(recipients: 3, size: 1024 * 1024) == 35)
    #expect(ReadyBoard.cost(recipients: 1, size: .max) > 1)
}

@Test func enormousMessageShutsItsClassOut() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"], senderClass: 1, size: 1))
    for number in 2..<2_000 { harness.receive(message(UInt32(number), to: ["u@x.test"], senderClass: 2)) }
    var board = harness.state.board
    var sites = harness.state.sites
    let site = sites.find(siteA) ?? none
    guard let queue = board.turn(site, &sites) else {
        Issue.record("no turn")
        return
    }
    board.charge(queue, site: site, senderClass: board.queue(queue).senderClass, cost: .max / 2)
    // The other class has its turns, and within the debt's bound the first comes back.
    var turns = 0
    while let next = board.turn(site, &sites), board.queue(next).senderClass == 2, turns < 5_000 {
        board.charge(next, site: site, senderClass: 2, cost: 1)
        turns += 1
    }
    #expect(turns > 900 && turns <= ReadyBoard.debtMax + 3 * ReadyBoard.quantum, "\(turns)")
}

@Test func oneDestinationHoldsUpAnother() {
    let harness = Harness()
    for number in 0..<100 { harness.receive(message(UInt32(number), to: ["u@busy.test"])) }
    harness.receive(message(500, to: ["u@quiet.test"]))
    #expect(harness.pull(siteA, 2).map(\.message.record) == [0, 500])
}

@Test func jobsOfADestinationOvertake() {
    let harness = Harness()
    for number in 0..<50 { harness.receive(message(UInt32(number), to: ["u@x.test"])) }
    #expect(harness.pull(siteA, 50).map(\.message.record) == (0..<50).map { UInt32($0) })
}

@Test func manyClassesStarveOne() {
    let harness = Harness()
    for number in 0..<3_000 {
        harness.receive(
            message(UInt32(number), to: ["u@d\(number % 7).test"], senderClass: UInt64(number % 100)))
    }
    var counts: [UInt32: Int] = [:]
    for transaction in harness.pull(siteA, 1_600) { counts[transaction.message.record % 100, default: 0] += 1 }
    #expect(counts.count == 100)
    #expect(counts.values.allSatisfy { $0 >= 8 && $0 <= 24 }, "\(counts.values.sorted())")
    #expect(harness.violations() == [])
}

@Test func siteTakesMailOfAnother() {
    let harness = Harness()
    harness.autoSite = nil
    harness.receive(message(1, to: ["u@x.test", "u@y.test"]))
    #expect(harness.pull(siteA, 5).isEmpty)
    harness.state.assign(harness.routes[0].0, to: siteA, until: .distantFuture, at: start)
    harness.state.assign(harness.routes[1].0, to: siteB, until: .distantFuture, at: start)
    harness.perform()
    #expect(harness.ready == [siteA: 1, siteB: 1])
    #expect(harness.pull(siteB, 5).map(\.recipients[0].recipient) == [1])
    // The domain moves with its mail.
    harness.state.assign(harness.routes[0].0, to: siteB, until: .distantFuture, at: start)
    #expect(harness.pull(siteA, 5).isEmpty)
    #expect(harness.pull(siteB, 5).map(\.recipients[0].recipient) == [0])
    #expect(harness.violations() == [])
}

@Test func routeIsUsedPastItsTime() {
    let harness = Harness()
    harness.autoSite = nil
    harness.receive(message(1, to: ["u@x.test"]), message(2, to: ["u@x.test"]))
    #expect(harness.routes.count == 1, "asked once for the destination")
    let id = harness.routes[0].0
    harness.state.assign(id, to: siteA, until: start + .minutes(1), at: start)
    #expect(harness.pull().count == 1)
    harness.advance(by: .minutes(2))
    #expect(harness.pull().isEmpty)
    #expect(harness.routes.count == 2)
    harness.state.assign(id, to: siteA, until: start + .hours(1), at: harness.now)
    #expect(harness.pull().count == 1)
    // With new mail as well.
    harness.advance(by: .hours(2))
    harness.receive(message(3, to: ["u@x.test"]))
    #expect(harness.routes.count == 3)
    #expect(harness.violations() == [])
}

@Test func unansweredRouteIsForgotten() {
    let harness = Harness()
    harness.autoSite = nil
    harness.receive(message(1, to: ["u@x.test"]))
    harness.advance(by: .seconds(60))
    #expect(harness.routes.count == 1)
    harness.advance(by: .seconds(61))
    #expect(harness.routes.count == 2)
}
