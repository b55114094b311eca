// Small tools of these tests: a count that several threads add to, a failure without a value.
import Synchronization
import Testing

final class Counter: Sendable {
    private let count = Atomic<Int>(0)

    func add() { count.wrappingAdd(1, ordering: .relaxed) }
    var value: Int { count.load(ordering: .relaxed) }
}

func fail(_ text: String, at location: SourceLocation = #_sourceLocation) {
    Issue.record("\(text)", sourceLocation: location)
}
