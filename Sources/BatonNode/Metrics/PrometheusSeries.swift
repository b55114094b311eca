// One counter, gauge or histogram of `PrometheusText`.
import CoreMetrics
import Synchronization

/// Something that writes its lines.
protocol PrometheusSeries: AnyObject, Sendable {
    func write(name: String, labels: String, into text: inout String)
}

final class PrometheusCounter: CounterHandler, PrometheusSeries {
    private let value = Atomic<Int64>(0)

    func increment(by amount: Int64) {
        // A counter that goes down looks like a restart to whoever takes its rate.
        if amount > 0 { value.wrappingAdd(amount, ordering: .relaxed) }
    }

    func reset() {}

    func write(name: String, labels: String, into text: inout String) {
        text += PrometheusFormat.line(name, labels, "\(value.load(ordering: .relaxed))")
    }
}

/// A double by its bit pattern, added to by compare and exchange.
struct AtomicDouble: ~Copyable {
    private let bits = Atomic<UInt64>(0)

    var value: Double { Double(bitPattern: bits.load(ordering: .relaxed)) }

    func set(_ value: Double) { bits.store(value.bitPattern, ordering: .relaxed) }

    func add(_ amount: Double) {
        var old = bits.load(ordering: .relaxed)
        while true {
            let new = (Double(bitPattern: old) + amount).bitPattern
            let result = bits.weakCompareExchange(expected: old, desired: new, ordering: .relaxed)
            if result.exchanged { return }
            old = result.original
        }
    }
}

final class PrometheusFloatCounter: FloatingPointCounterHandler, PrometheusSeries {
    private let value = AtomicDouble()

    func increment(by amount: Double) {
        if amount > 0, amount.isFinite { value.add(amount) }
    }

    func reset() {}

    func write(name: String, labels: String, into text: inout String) {
        text += PrometheusFormat.line(name, labels, PrometheusFormat.number(value.value))
    }
}

final class PrometheusGauge: MeterHandler, RecorderHandler, PrometheusSeries {
    private let value = AtomicDouble()

    func set(_ value: Int64) { self.value.set(Double(value)) }
    func set(_ value: Double) { self.value.set(value) }
    func increment(by amount: Double) { value.add(amount) }
    func decrement(by amount: Double) { value.add(-amount) }
    func record(_ value: Int64) { set(value) }
    func record(_ value: Double) { set(value) }

    func write(name: String, labels: String, into text: inout String) {
        text += PrometheusFormat.line(name, labels, PrometheusFormat.number(value.value))
    }
}

/// Upper bounds of histogram buckets, fixed so that series of several nodes can be added.
enum PrometheusBuckets {
    static let seconds: [Double] = [
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
        1800, 14400, 86400,
    ]
    static let bytes: [Double] = [
        256, 1024, 4096, 16384, 65536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864, 268_435_456,
    ]
    static let counts: [Double] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536]

    static func bounds(for name: String) -> [Double] {
        if name.hasSuffix("_seconds") { return seconds }
        return name.hasSuffix("_bytes") ? bytes : counts
    }
}

final class PrometheusHistogram: TimerHandler, RecorderHandler, PrometheusSeries {
    private struct State {
        /// Values in each bucket, not yet summed up; the last one is above all bounds.
        var counts: [UInt64]
        var sum = 0.0
    }

    private let bounds: [Double]
    private let state: Mutex<State>

    init(bounds: [Double]) {
        self.bounds = bounds
        self.state = Mutex(State(counts: Array(repeating: 0, count: bounds.count + 1)))
    }

    func recordNanoseconds(_ duration: Int64) { record(Double(duration) / 1e9) }
    func record(_ value: Int64) { record(Double(value)) }

    func record(_ value: Double) {
        guard value.isFinite else { return }
        let bucket = bounds.firstIndex { value <= $0 } ?? bounds.count
        state.withLock { state in
            state.counts[bucket] &+= 1
            state.sum += value
        }
    }

    func write(name: String, labels: String, into text: inout String) {
        let copy = state.withLock { $0 }
        var total: UInt64 = 0
        let start = labels.isEmpty ? "" : labels + ","
        for (index, count) in copy.counts.enumerated() {
            total &+= count
            let bound = index < bounds.count ? PrometheusFormat.number(bounds[index]) : "+Inf"
            text += PrometheusFormat.line(name + "_bucket", "\(start)le=\"\(bound)\"", "\(total)")
        }
        text += PrometheusFormat.line(name + "_sum", labels, PrometheusFormat.number(copy.sum))
        text += PrometheusFormat.line(name + "_count", labels, "\(total)")
    }
}
