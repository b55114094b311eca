// Placement of new mail on the cluster's nodes, bound to the runtime, the spool and the queue.
import BatonCluster
import BatonCore
import BatonModel
import BatonPeer
import BatonSpool
import NIOCore

/// The placer and the held copies of a node of a cluster.
final class NodePlacement: Sendable {
    let placer: Placer
    let held: HeldMessages
    private let cluster: NodeCluster
    private let drops: Drops

    /// SUBMIT, SUBMITTED and ASK over the peer transport.
    private struct Transport: SubmitTransport {
        let peers: PeerTransport

        func send(_ message: PeerMessage, to node: NodeID) -> Bool { peers.send([message], to: node) }
    }

    /// Answers SUBMITs whose body cannot be opened.
    private struct Drops: Sendable {
        let peers: PeerTransport
        let own: NodeRun
    }

    init(
        _ cluster: NodeCluster, spool: Spool, queue: any JobReceiving, spreadRate: Double, time: any TimeSource
    ) {
        let me = cluster.runtime.settings.me
        let own = NodeRun(node: me.node, incarnation: me.incarnation)
        held = HeldMessages(queue: queue, outcomes: spool, time: time)
        placer = Placer(
            own: own, spreadRate: spreadRate, local: spool, held: held,
            transport: Transport(peers: cluster.transport), time: time, isFinal: { spool.isFinal($0) })
        drops = Drops(peers: cluster.transport, own: own)
        self.cluster = cluster
    }

    /// In front of `relay`, for segments taken over: their messages, final ones too, are known by their keys (PROTOCOL S5, S7).
    func keys(before relay: any UnreportedReceiving) -> any UnreportedReceiving {
        AdoptedKeys(placer: placer, relay: relay)
    }

    private struct AdoptedKeys: UnreportedReceiving {
        let placer: Placer
        let relay: any UnreportedReceiving

        func unreported(outcomes: [UnreportedOutcome]) { relay.unreported(outcomes: outcomes) }

        func unreported(receptions: [Envelope]) { relay.unreported(receptions: receptions) }

        func late(outcomes: [UnreportedOutcome]) { relay.late(outcomes: outcomes) }

        func found(submits: [FoundSubmit]) {
            let keys = submits.map { found in
                AdoptedKey(key: MessageKey(found.mark), ref: found.ref, isFinal: found.isFinal)
            }
            placer.post(.adopted(keys))
        }
    }

    /// Before the runtime starts.
    func bind() {
        let me = cluster.runtime.settings.me.node
        cluster.runtime.handlers { [placer, cluster, drops] handlers in
            handlers.submit = { frame, identity in
                var message = frame.message
                if case .submit(let submit) = message {
                    // Given back as soon as it is handed on: what waits for the disk is bounded there.
                    cluster.transport.release(frame.cost, of: frame.session)
                    guard let body = submit.openedBody() else {
                        let receiver = NodeRun(node: drops.own.node, incarnation: submit.receiver)
                        let answer = Submitted(key: submit.key, receiver: receiver, answer: .refused(.unreadable))
                        _ = drops.peers.send([.submitted(answer)], to: identity.run.node)
                        return
                    }
                    var opened = submit
                    opened.body = body
                    opened.isCompressed = false
                    message = .submit(opened)
                }
                placer.received(message, from: identity.run)
            }
            // Added to what others (the quota) have put there, never in its place.
            let (disconnected, tick, membership) = (handlers.disconnected, handlers.tick, handlers.membership)
            handlers.disconnected = { node in
                disconnected(node)
                placer.post(.lost(node))
            }
            handlers.tick = {
                tick()
                placer.tick()
            }
            handlers.scanned = { run, complete in
                placer.post(
                    .scanned(NodeRun(node: run.node, incarnation: run.incarnation), complete: complete))
            }
            handlers.whole = { placer.post(.whole(segment: $0)) }
            handlers.membership = { view in
                membership(view)
                var nodes: [PlacementNode] = []
                var live: [NodeRun] = []
                for entry in view.nodes {
                    guard let drainer = entry.run else { continue }
                    let run = NodeRun(node: drainer.node, incarnation: drainer.incarnation)
                    live.append(run)
                    let reachable = entry.node == me || cluster.transport.isConnected(to: entry.node, .bulk)
                    guard entry.state == .serving, reachable else { continue }
                    nodes.append(PlacementNode(run: run, weight: UInt32(max(1, min(10_000, entry.weight * 100)))))
                }
                placer.update(nodes: nodes, live: live)
            }
        }
    }
}
