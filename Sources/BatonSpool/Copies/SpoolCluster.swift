// What a spool is given in a cluster, and how its loops differ there.
import BatonCore
import BatonModel

/// Parts of a cluster that the spool works with. Without one it is a single node's spool.
package struct SpoolCluster: Sendable {
    /// Keys of segments in the control plane.
    package let registry: any SegmentRegistry
    package let replicator: any ChunkReplicating
    package let news: any SegmentNews

    package init(registry: any SegmentRegistry, replicator: any ChunkReplicating, news: any SegmentNews) {
        self.registry = registry
        self.replicator = replicator
        self.news = news
    }
}
