// Counters of the ingress: made once, fed in batches from each loop.
import Metrics

/// What a loop has counted since its last flush.
struct IngressTally {
    var connections = 0
    var messages = 0
    var bytes = 0
    var refusedMessages = 0
    var rejections = 0
    var refusedConnections = 0
    var refusedFromClient = 0
    var overMemory = 0

    var isEmpty: Bool {
        connections | messages | bytes | refusedMessages | rejections | refusedConnections | refusedFromClient
            | overMemory == 0
    }
}

struct IngressMetrics: Sendable {
    private let connections = Counter(label: "baton_ingress_connections_total")
    private let messages = Counter(label: "baton_ingress_messages_total")
    private let bytes = Counter(label: "baton_ingress_bytes_total")
    private let refusedMessages = Counter(label: "baton_ingress_storage_refusals_total")
    private let rejections = Counter(label: "baton_ingress_rejections_total")
    private let refusedConnections = Counter(
        label: "baton_ingress_connections_refused_total", dimensions: [("limit", "connections")])
    private let refusedFromClient = Counter(
        label: "baton_ingress_connections_refused_total", dimensions: [("limit", "connections_per_client")])
    private let overMemory = Counter(label: "baton_ingress_over_memory_total")
    private let open = Gauge(label: "baton_ingress_connections")
    private let memory = Gauge(label: "baton_ingress_memory_bytes")

    func add(_ tally: IngressTally) {
        if tally.connections > 0 { connections.increment(by: tally.connections) }
        if tally.messages > 0 { messages.increment(by: tally.messages) }
        if tally.bytes > 0 { bytes.increment(by: tally.bytes) }
        if tally.refusedMessages > 0 { refusedMessages.increment(by: tally.refusedMessages) }
        if tally.rejections > 0 { rejections.increment(by: tally.rejections) }
        if tally.refusedConnections > 0 { refusedConnections.increment(by: tally.refusedConnections) }
        if tally.refusedFromClient > 0 { refusedFromClient.increment(by: tally.refusedFromClient) }
        if tally.overMemory > 0 { overMemory.increment(by: tally.overMemory) }
    }

    func show(connections: Int, memory: Int) {
        open.record(connections)
        self.memory.record(memory)
    }
}
