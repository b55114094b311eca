// Values of the node that are read when `/metrics` is scraped.
import BatonCore
import BatonDelivery
import BatonIngress
import BatonSpool

extension RelayNode {
    /// Spool, event log and connections; cheap snapshots from any thread.
    func samples() -> [MetricSample] {
        let stats = spool.stats
        var samples: [MetricSample] = [
            .gauge("baton_copies", Double(configuration.copies)),
            .gauge("baton_spool_sync", stats.syncs ? 1 : 0),
            .gauge("baton_spool_segments", Double(stats.segmentsOpen), [("state", "open")]),
            .gauge("baton_spool_segments", Double(stats.segmentsSealed), [("state", "sealed")]),
            .gauge("baton_spool_bytes", Double(stats.bytes)),
            .gauge("baton_spool_live_bytes", Double(stats.liveBytes)),
            .gauge("baton_spool_live_messages", Double(stats.messages)),
            .gauge("baton_spool_live_recipients", Double(stats.liveRecipients)),
            .gauge("baton_spool_quarantined_bytes", Double(stats.quarantinedBytes)),
            .gauge("baton_spool_damaged_segments", Double(stats.damagedSegments)),
            .gauge("baton_spool_lane_dead", stats.laneDead ? 1 : 0),
            .gauge("baton_spool_disk_full", stats.diskFull ? 1 : 0),
            .counter("baton_spool_segments_reclaimed_total", Double(stats.segmentsReclaimed)),
            .counter("baton_spool_chunks_repaired_total", Double(stats.chunksRepaired)),
            .counter("baton_spool_segments_cleaned_total", Double(stats.segmentsCleaned)),
            .gauge("baton_disk_free_bytes", Double(stats.freeBytes)),
            .gauge("baton_events_unsynced", Double(events.recorded &- events.synced)),
            .gauge("baton_events_full", events.isFull ? 1 : 0),
            .gauge("baton_ingress_connections_open", Double(ingress.connections)),
            .gauge("baton_ingress_memory_bytes", Double(ingress.memoryInUse)),
            .gauge("baton_delivery_connections_open", Double(permits.openConnections)),
        ]
        samples += ProcessMetrics.samples(
            startedAt: Double(startedAt.nanoseconds) / 1e9, version: BatonVersion.current,
            nodeID: configuration.node.id)
        return samples
    }
}
