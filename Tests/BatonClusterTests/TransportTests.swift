// Two transports over real sockets: every frame type, order, credit, loops, farewell, new runs.
import BatonCore
import BatonModel
import BatonPeer
import NIOCore
import Synchronization
import Testing

@testable import BatonCluster

/// One message of every type that a caller may send, as `run` may say it.
func everyMessage(by run: NodeRun, to receiver: NodeRun) -> [PeerMessage] {
    let own = SegmentID(writer: run.node, incarnation: run.incarnation, index: 7)
    let key = MessageKey(ingress: run, counter: 1)
    let item = BatonPeer.PromiseItem(segment: own, epoch: 6)
    let now = Instant(secondsSinceEpoch: 1_700_000_000)
    func bytes(_ text: String) -> ByteBuffer { ByteBuffer(string: text) }
    return [
        .submit(
            Submit(
                key: key, receiver: receiver.incarnation, envelope: bytes("env"), body: bytes("hello"), bodyOctets: 5,
                isCompressed: false)),
        .submitted(Submitted(key: key, receiver: receiver, answer: .stored)),
        .ask(Ask(key: key, receiver: receiver)),
        .create(Create(segment: own, epoch: 3, reserve: 4096)),
        .created(Created(segment: own, epoch: 3, incarnation: run.incarnation, disk: 9, status: .created)),
        .append(Append(segment: own, epoch: 3, offset: 0, chunkOctets: 4, position: 0, octets: bytes("BTNC"))),
        .durable(Durable(segment: own, epoch: 3, upTo: 4, incarnation: run.incarnation, status: .durable)),
        .outcome(OutcomeRecords(segment: own, epoch: 4, from: 0, count: 1, records: bytes("records"))),
        .recorded(Recorded(segment: own, epoch: 4, memory: 7, synced: 7, incarnation: run.incarnation)),
        .fetch(Fetch(request: 1, segment: own, epoch: 4, from: 0, atMost: 4096, part: .segment)),
        .chunk(
            CopyPart(
                request: 1, segment: own, epoch: 4, offset: 0, part: .segment, status: .octets, isLast: true,
                octets: bytes("bytes"))),
        .seal(Seal(segment: own, epoch: 5)),
        .sealed(
            Sealed(
                segment: own, epoch: 5, length: 4, logLength: nil, incarnation: run.incarnation, status: .sealed,
                hasInvalidTail: false)),
        .finished(Finished(segment: own, epoch: 6)),
        .unlinked(Unlinked(segment: own, revision: 6, disk: 9)),
        .promiseAsked(PromiseAsked(number: 8, askedAt: now, items: [item])),
        .promise(Promise(number: 8, askedAt: now, span: .seconds(2), items: [item])),
        .quota(
            Quota(
                verb: .grant, kind: .rate, span: .seconds(30), request: 9, share: 10, amount: 6000,
                site: Array("example.net".utf8))),
        .query(Query(request: 11, name: Array("/api/v1/queue".utf8), json: bytes("{}"))),
        .answer(Answer(request: 11, status: 200, json: bytes("{}"))),
    ]
}

@Test func frameTypeIsLostOrChangedBetweenTwoNodes() async throws {
    let (one, two) = try await connectedPair()
    for (from, to) in [(one, two), (two, one)] {
        let messages = everyMessage(by: from.run, to: to.run)
        #expect(messages.count == FrameType.allCases.count(where: \.usesCredit))
        #expect(from.transport.send(messages, to: to.node))
        #expect(await eventually { to.recorder.messages.count == messages.count })
        // In order per channel.
        for channel in PeerChannel.allCases {
            #expect(
                to.recorder.messages.filter { $0.type.channel == channel }
                    == messages.filter { $0.type.channel == channel })
        }
    }
    await one.stop()
    await two.stop()
    for (node, other) in [(one, two), (two, one)] {
        for channel in PeerChannel.allCases {
            #expect(node.recorder.count(.connected(other.run, channel)) >= 1)
            #expect(
                node.recorder.count(.connected(other.run, channel))
                    == node.recorder.count(.disconnected(other.run, channel)))
        }
    }
}

@Test func bulkAndControlShareALoop() async throws {
    let (one, two) = try await connectedPair()
    for (from, to) in [(one, two), (two, one)] {
        #expect(from.transport.send(everyMessage(by: from.run, to: to.run), to: to.node))
        #expect(await eventually { to.recorder.messages.count == FrameType.allCases.count(where: \.usesCredit) })
        let loops = to.recorder.state.withLock { $0.loops }
        #expect(loops[.control] == [ObjectIdentifier(TestLoops.control)])
        #expect(loops[.bulk] == [ObjectIdentifier(TestLoops.bulk)])
    }
    await one.stop()
    await two.stop()
}
