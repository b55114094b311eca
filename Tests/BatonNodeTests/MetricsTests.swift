// Prometheus text: names, labels, types, buckets, and counters that never go back. Log lines without a byte to trust.
import BatonCore
import CoreMetrics
import Logging
import Synchronization
import Testing

@testable import BatonNode

/// The lines of `text` that are about `name`.
private func lines(_ text: String, _ name: String) -> [String] {
    text.split(separator: "\n").map(String.init).filter { $0.contains(name) }
}

@Test func counterThatStartsAnew() {
    let metrics = PrometheusText()
    let counter = Counter(label: "baton_messages_received_total", dimensions: [], factory: metrics)
    counter.increment(by: 41)
    counter.reset()
    counter.destroy()
    let again = Counter(label: "baton_messages_received_total", dimensions: [], factory: metrics)
    again.increment()
    again.increment(by: -5)
    #expect(
        metrics.render() == "# TYPE baton_messages_received_total counter\nbaton_messages_received_total 42\n")
}

@Test func metricWithoutPrefixOrSuffix() {
    let metrics = PrometheusText()
    Counter(label: "http.requests", dimensions: [], factory: metrics).increment()
    Gauge(label: "queue depth", dimensions: [], factory: metrics).record(2.5)
    Timer(label: "baton_sync", dimensions: [], preferredDisplayUnit: .seconds, factory: metrics)
        .recordNanoseconds(2_000_000)
    let text = metrics.render()
    #expect(text.contains("baton_http_requests_total 1\n"))
    #expect(text.contains("baton_queue_depth 2.5\n"))
    #expect(text.contains("baton_sync_seconds_bucket{le=\"0.001\"} 0\n"))
    #expect(text.contains("baton_sync_seconds_bucket{le=\"0.0025\"} 1\n"))
    #expect(text.contains("baton_sync_seconds_bucket{le=\"+Inf\"} 1\n"))
    #expect(text.contains("baton_sync_seconds_sum 0.002\n"))
    #expect(text.contains("baton_sync_seconds_count 1\n"))
}

@Test func labelThatBreaksTheLine() {
    let metrics = PrometheusText()
    Counter(label: "x", dimensions: [("site", "a\"b\\c\nd\u{7}"), ("a-b", "1")], factory: metrics).increment()
    #expect(metrics.render().contains("baton_x_total{a_b=\"1\",site=\"a\\\"b\\\\c\\nd?\"} 1\n"))
    let long = String(repeating: "é", count: 200)
    Counter(label: "y", dimensions: [("l", long)], factory: metrics).increment()
    let line = lines(metrics.render(), "baton_y_total{").first ?? ""
    #expect(line.utf8.count <= MetricsLimits.labelValueOctets + 30)
}

@Test func moreLabelsThanASeriesMayHave() {
    let metrics = PrometheusText()
    for index in 0..<(MetricsLimits.seriesPerName + 50) {
        Counter(label: "sites", dimensions: [("site", "s\(index)")], factory: metrics).increment()
    }
    let rows = lines(metrics.render(), "baton_sites_total{")
    #expect(rows.count == MetricsLimits.seriesPerName + 1)
    #expect(rows.contains("baton_sites_total{site=\"other\"} 50"))
}

@Test func oneNameWithTwoTypes() {
    let metrics = PrometheusText()
    Counter(label: "thing_total", dimensions: [], factory: metrics).increment(by: 3)
    Gauge(label: "thing_total", dimensions: [], factory: metrics).record(9)
    #expect(metrics.render() == "# TYPE baton_thing_total counter\nbaton_thing_total 3\n")
}

@Test func histogramThatIsNotCumulative() {
    let metrics = PrometheusText()
    let recorder = Recorder(label: "batch", dimensions: [("lane", "0")], aggregate: true, factory: metrics)
    for value in [1, 3, 3, 100_000] { recorder.record(value) }
    let text = metrics.render()
    #expect(text.contains("baton_batch_bucket{lane=\"0\",le=\"1\"} 1\n"))
    #expect(text.contains("baton_batch_bucket{lane=\"0\",le=\"4\"} 3\n"))
    #expect(text.contains("baton_batch_bucket{lane=\"0\",le=\"65536\"} 3\n"))
    #expect(text.contains("baton_batch_bucket{lane=\"0\",le=\"+Inf\"} 4\n"))
    #expect(text.contains("baton_batch_sum{lane=\"0\"} 100007\n"))
}

@Test func sampleOfAScrapeThatIsLost() {
    let metrics = PrometheusText()
    metrics.addCollector {
        [
            .gauge("baton_spool_bytes", 1.5e9), .counter("baton_commits_total", 7, [("lane", "0")]),
            .counter("baton_commits_total", 8, [("lane", "1")]),
        ]
    }
    #expect(
        metrics.render()
            == "# TYPE baton_commits_total counter\nbaton_commits_total{lane=\"0\"} 7\nbaton_commits_total{lane=\"1\"} 8\n"
            + "# TYPE baton_spool_bytes gauge\nbaton_spool_bytes 1500000000\n")
}

@Test func countsLostBetweenThreads() async {
    let metrics = PrometheusText()
    await withTaskGroup(of: Void.self) { group in
        for _ in 0..<4 {
            group.addTask {
                let counter = Counter(label: "c", dimensions: [], factory: metrics)
                let gauge = Meter(label: "g", dimensions: [], factory: metrics)
                for _ in 0..<1000 {
                    counter.increment()
                    gauge.increment(by: 0.5)
                }
            }
        }
    }
    #expect(metrics.render().contains("baton_c_total 4000\n"))
    #expect(metrics.render().contains("baton_g 2000\n"))
}

@Test func processThatTakesNothing() {
    let samples = ProcessMetrics.samples(startedAt: 1, version: "v", nodeID: "n")
    func value(_ name: String) -> Double { samples.first { $0.name == name }?.value ?? -1 }
    #expect(value("baton_process_resident_memory_bytes") > 1_000_000)
    #expect(value("baton_process_cpu_seconds_total") > 0)
    #expect(value("baton_process_open_fds") >= 3)
    #expect(value("baton_process_max_fds") >= value("baton_process_open_fds"))
}

// MARK: Log lines

private func line(_ style: LogOutput.Style, _ message: String, _ metadata: Logger.Metadata = [:]) -> String {
    LogOutput(label: "baton", level: .trace, style: style) { _ in }
        .line(level: .notice, message: message, metadata: metadata, time: "T")
}

@Test func replyThatEndsALogLine() {
    let evil = "550 no\r\n2026 forged\u{1b}[31m\u{202e}\u{85}\u{0}"
    let text = line(.text, "deferred", ["smtp.reply": "\(evil)"])
    #expect(
        text == "T notice   deferred  smtp.reply=\"550 no\\u{d}\\u{a}2026 forged\\u{1b}[31m\\u{202e}\\u{85}\\u{0}\"\n")
    let json = line(.json, "a \"b\" \\ \(evil)", ["k": ["x", "y\n"]])
    #expect(json.filter { $0 == "\n" }.count == 1)
    #expect(
        json.hasPrefix(
            "{\"time\":\"T\",\"level\":\"notice\",\"logger\":\"baton\",\"message\":\"a \\\"b\\\" \\\\ 550 no\\u000d\\u000a"
        ))
    #expect(json.hasSuffix(",\"k\":\"[x, y\\u000a]\"}\n"))
}

@Test func logValueOverItsBound() {
    let text = line(.text, String(repeating: "x", count: 3 * LogEscape.octetsMax))
    #expect(text.utf8.count < LogEscape.octetsMax + 40)
    #expect(text.hasSuffix("…\n"))
}

@Test func metadataThatDoesNotReachTheLine() {
    let written = Mutex<[String]>([])
    var logger = Logger(label: "baton") { label in
        LogOutput(label: label, level: .info, style: .text) { line in written.withLock { $0.append(line) } }
    }
    logger[metadataKey: "node"] = "n1"
    logger.info("Spool opened", metadata: ["segments": "3"])
    logger.debug("not shown")
    let lines = written.withLock { $0 }
    #expect(lines.count == 1)
    #expect(lines.first?.hasSuffix(" info     Spool opened  node=n1  segments=3\n") == true)
}

@Test func timeOfAnotherZone() {
    #expect(TimeText.rfc3339(0) == "1970-01-01T00:00:00.000Z")
    #expect(TimeText.rfc3339(1_790_000_000.25) == "2026-09-21T14:13:20.250Z")
    #expect(TimeText.rfc3339(.infinity) == "1970-01-01T00:00:00.000Z")
    #expect(TimeText.rfc3339(1e300) == "9999-12-31T23:59:59.000Z")
}
