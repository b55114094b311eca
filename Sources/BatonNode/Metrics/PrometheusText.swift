// A swift-metrics back end that renders the Prometheus text format; counters never reset.
import CoreMetrics
import Synchronization

/// Bounds of the metrics themselves (docs/LIMITS.md).
package enum MetricsLimits {
    /// Label combinations of one name; further ones are counted under the label value `other`.
    package static let seriesPerName = 1_000
    /// Octets of a label value.
    package static let labelValueOctets = 100
}

/// Collects every metric of the process. Any thread; a scrape takes the registry's lock for the time of a copy.
///
/// Handlers of one name and label set are one object for ever: `destroy…` forgets nothing, so no counter starts anew.
/// Names get the prefix `baton_`, counters end in `_total`, timers in `_seconds`; a name that is used with two types keeps
/// its first one, and the second is not shown.
package final class PrometheusText: MetricsFactory {
    enum Kind: String {
        case counter
        case gauge
        case histogram
    }

    private struct Family {
        let kind: Kind
        var series: [String: any PrometheusSeries] = [:]
    }

    private let families = Mutex<[String: Family]>([:])
    private let collectors = Mutex<[@Sendable () -> [MetricSample]]>([])

    package init() {}

    /// Values that are read when somebody asks (spool, process), on the thread of `render`.
    package func addCollector(_ collector: @escaping @Sendable () -> [MetricSample]) {
        collectors.withLock { $0.append(collector) }
    }

    // MARK: Registry

    private func series<Series: PrometheusSeries>(
        _ name: String, _ kind: Kind, _ dimensions: [(String, String)], _ make: () -> Series
    ) -> Series {
        families.withLock { families in
            var family = families[name] ?? Family(kind: kind)
            // Two types under one name cannot both be shown; the stranger still works for its owner.
            guard family.kind == kind else { return make() }
            var labels = PrometheusFormat.labels(dimensions)
            if family.series[labels] == nil, family.series.count >= MetricsLimits.seriesPerName {
                labels = PrometheusFormat.labels(dimensions.map { ($0.0, "other") })
            }
            if let known = family.series[labels] as? Series { return known }
            let made = make()
            family.series[labels] = made
            families[name] = family
            return made
        }
    }

    /// The text format 0.0.4, names sorted.
    package func render() -> String {
        let copy = families.withLock { $0 }
        var blocks: [String: String] = [:]
        for (name, family) in copy where !family.series.isEmpty {
            var block = "# TYPE \(name) \(family.kind.rawValue)\n"
            for (labels, series) in family.series.sorted(by: { $0.key < $1.key }) {
                series.write(name: name, labels: labels, into: &block)
            }
            blocks[name] = block
        }
        for sample in collectors.withLock({ $0 }).flatMap({ $0() }) {
            let name = PrometheusFormat.name(sample.name, suffix: sample.isCounter ? "_total" : "")
            let kind = sample.isCounter ? Kind.counter : .gauge
            if copy[name] != nil { continue }
            var block = blocks[name] ?? "# TYPE \(name) \(kind.rawValue)\n"
            block += PrometheusFormat.line(
                name, PrometheusFormat.labels(sample.labels), PrometheusFormat.number(sample.value))
            blocks[name] = block
        }
        return blocks.sorted { $0.key < $1.key }.map(\.value).joined()
    }

    // MARK: MetricsFactory

    package func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler {
        series(PrometheusFormat.name(label, suffix: "_total"), .counter, dimensions) { PrometheusCounter() }
    }

    package func makeFloatingPointCounter(
        label: String, dimensions: [(String, String)]
    ) -> any FloatingPointCounterHandler {
        series(PrometheusFormat.name(label, suffix: "_total"), .counter, dimensions) { PrometheusFloatCounter() }
    }

    package func makeMeter(label: String, dimensions: [(String, String)]) -> any MeterHandler {
        series(PrometheusFormat.name(label, suffix: ""), .gauge, dimensions) { PrometheusGauge() }
    }

    package func makeRecorder(label: String, dimensions: [(String, String)], aggregate: Bool) -> any RecorderHandler {
        let name = PrometheusFormat.name(label, suffix: "")
        if !aggregate { return series(name, .gauge, dimensions) { PrometheusGauge() } }
        return series(name, .histogram, dimensions) { PrometheusHistogram(bounds: PrometheusBuckets.bounds(for: name)) }
    }

    package func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler {
        let name = PrometheusFormat.name(label, suffix: "_seconds")
        return series(name, .histogram, dimensions) { PrometheusHistogram(bounds: PrometheusBuckets.seconds) }
    }

    package func destroyCounter(_ handler: any CounterHandler) {}
    package func destroyFloatingPointCounter(_ handler: any FloatingPointCounterHandler) {}
    package func destroyMeter(_ handler: any MeterHandler) {}
    package func destroyRecorder(_ handler: any RecorderHandler) {}
    package func destroyTimer(_ handler: any TimerHandler) {}
}

/// A value read at scrape time.
package struct MetricSample: Sendable {
    package let name: String
    package let labels: [(String, String)]
    package let value: Double
    package let isCounter: Bool

    package static func gauge(_ name: String, _ value: Double, _ labels: [(String, String)] = []) -> MetricSample {
        MetricSample(name: name, labels: labels, value: value, isCounter: false)
    }

    /// `value` never goes down while the process lives.
    package static func counter(_ name: String, _ value: Double, _ labels: [(String, String)] = []) -> MetricSample {
        MetricSample(name: name, labels: labels, value: value, isCounter: true)
    }
}

/// Names, labels and numbers of the text format.
enum PrometheusFormat {
    /// `baton_` in front, foreign characters as `_`, the suffix at the end once.
    static func name(_ label: String, suffix: String) -> String {
        var name = identifier(label)
        if !name.hasPrefix("baton_") { name = "baton_" + name }
        return name.hasSuffix(suffix) ? name : name + suffix
    }

    static func identifier(_ text: String) -> String {
        var bytes = text.utf8.map { byte -> UInt8 in
            let word =
                (byte >= 0x30 && byte <= 0x39) || (byte >= 0x41 && byte <= 0x5a) || (byte >= 0x61 && byte <= 0x7a)
            return word ? byte : UInt8(ascii: "_")
        }
        if bytes.first.map({ $0 >= 0x30 && $0 <= 0x39 }) ?? true { bytes.insert(UInt8(ascii: "_"), at: 0) }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// `a="b",c="d"` in the order of names; empty without labels.
    static func labels(_ dimensions: [(String, String)]) -> String {
        dimensions.map { (identifier($0.0), $0.1) }.sorted { $0.0 < $1.0 }
            .map { "\($0.0)=\"\(escaped($0.1))\"" }.joined(separator: ",")
    }

    private static func escaped(_ value: String) -> String {
        var text = ""
        for scalar in value.unicodeScalars {
            if text.utf8.count >= MetricsLimits.labelValueOctets { break }
            switch scalar {
            case "\\": text += "\\\\"
            case "\"": text += "\\\""
            case "\n": text += "\\n"
            case _ where scalar.value < 0x20 || scalar.value == 0x7f: text += "?"
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text
    }

    static func line(_ name: String, _ labels: String, _ value: String) -> String {
        labels.isEmpty ? "\(name) \(value)\n" : "\(name){\(labels)} \(value)\n"
    }

    static func number(_ value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
        return value == value.rounded() && abs(value) < 1e15 ? "\(Int64(value))" : "\(value)"
    }
}
