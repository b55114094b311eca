// The cluster's parts of a node, made from the configuration and bound to its spool.
import BatonCluster
import BatonControlPlane
import BatonCore
import BatonHTTPClient
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import BatonTLS
import Foundation
import Logging
import NIOCore
import NIOPosix

/// What `cluster:` adds to a node. Made before the spool, bound to it, started behind it and stopped behind it.
final class NodeCluster: Sendable {
    let settings: ClusterSettings
    let runtime: ClusterRuntime
    let transport: PeerTransport
    private let controlGroup: MultiThreadedEventLoopGroup
    /// Nil without TLS between the nodes.
    private let tls: TLSContext?

    private init(
        settings: ClusterSettings, runtime: ClusterRuntime, transport: PeerTransport,
        controlGroup: MultiThreadedEventLoopGroup, tls: TLSContext?
    ) {
        self.tls = tls
        self.settings = settings
        self.runtime = runtime
        self.transport = transport
        self.controlGroup = controlGroup
    }

    /// Throws `NodeError` for settings that cannot work.
    static func make(
        _ settings: ClusterSettings, _ configuration: NodeConfiguration, directory: DataDirectory,
        bulkLoop: any EventLoop, time: any TimeSource, logger: Logger,
        onRestart: @escaping @Sendable (String) -> Void
    ) throws(NodeError) -> NodeCluster {
        let plane: EtcdControlPlane
        do throws(ControlFailure) {
            plane = try EtcdControlPlane(try etcd(settings))
        } catch {
            throw NodeError("cluster.etcd: \(error)", exitCode: 78)
        }
        let identity = directory.identity
        var peer = PeerSettings(
            name: Array(configuration.node.id.utf8), cluster: Array(settings.name.utf8),
            incarnation: directory.incarnation)
        peer.features = [.lz4, .chunks]
        let text = settings.peerAddress.description
        guard let address = PeerAddress(text) else {
            throw NodeError("cluster.peer_address: \(text) is no address", exitCode: 78)
        }
        let security = try security(settings)
        let controlGroup = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let transport = PeerTransport(
            configuration: PeerTransportConfiguration(
                address: address, settings: peer, security: security),
            controlLoop: controlGroup.next(), bulkLoop: bulkLoop, time: time, logger: logger)
        let runtime = ClusterRuntime(
            settings: ClusterRuntimeSettings(
                cluster: settings.name, nodeName: configuration.node.id,
                me: Drainer(node: identity.node, incarnation: directory.incarnation), disk: identity.diskID,
                copies: settings.minCopies, lease: settings.lease,
                failureDomain: settings.failureDomain ?? configuration.node.id, weight: settings.weight,
                address: text, version: BatonVersion.current,
                segmentSize: Int64(configuration.spoolSettings.segmentSize), segmentsPath: directory.segmentsPath),
            plane: plane, transport: transport, marks: RegistryMarkFile(directory), time: time, logger: logger
        ) { reason in onRestart("\(reason)") }
        var tls: TLSContext?
        if case .tls(let context) = security { tls = context }
        return NodeCluster(
            settings: settings, runtime: runtime, transport: transport, controlGroup: controlGroup, tls: tls)
    }

    private static func etcd(_ settings: ClusterSettings) throws(ControlFailure) -> EtcdSettings {
        var credentials: HTTPCredentials?
        if let user = settings.etcdUser, let file = settings.etcdPasswordFile {
            guard let text = try? String(contentsOfFile: file, encoding: .utf8) else {
                throw .refused(.invalid, "\(file) cannot be read")
            }
            credentials = HTTPCredentials(user: user, password: text.trimmingCharacters(in: .newlines))
        }
        return EtcdSettings(
            endpoints: settings.etcd, credentials: credentials,
            tls: HTTPTLSSettings(
                caFile: settings.etcdTLS.ca, certificateFile: settings.etcdTLS.certificate,
                privateKeyFile: settings.etcdTLS.privateKey))
    }

    private static func security(_ settings: ClusterSettings) throws(NodeError) -> PeerSecurity {
        if settings.insecurePlaintext { return .plaintext }
        guard let ca = settings.tls.ca, let certificate = settings.tls.certificate, let key = settings.tls.privateKey
        else { throw NodeError("cluster.tls: ca, certificate and private_key are needed", exitCode: 78) }
        do throws(TLSFileError) {
            return .tls(try TLSContext(TLSFiles(authority: ca, certificate: certificate, privateKey: key)))
        } catch {
            throw NodeError("cluster.tls: \(error)", exitCode: 78)
        }
    }

    /// SIGHUP: certificates and keys of the peers are read again; new connections use them. Throws and changes nothing where one is
    /// no good.
    func reload() throws { try tls?.reload() }

    /// What the spool is opened with.
    var spool: SpoolCluster {
        SpoolCluster(registry: runtime.agent, replicator: runtime.replicator, news: runtime)
    }

    /// The node's key goes last, when everything is settled; then the loops.
    func stop(forGood: Bool) async {
        await runtime.stop(forGood: forGood)
        try? await controlGroup.shutdownGracefully()
    }
}
