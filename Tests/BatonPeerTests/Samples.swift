// One message of every type with fixed values, and messages with random ones.
import BatonCore
import BatonModel
import NIOCore

@testable import BatonPeer

let sampleSegment = SegmentID(
    writer: NodeID(value: 0x1122_3344_5566_7788), incarnation: Incarnation(value: 0x99aa_bbcc_ddee_ff00), index: 7)
let sampleKey = MessageKey(
    ingress: NodeRun(
        node: NodeID(value: 0x0102_0304_0506_0708), incarnation: Incarnation(value: 0x1112_1314_1516_1718)),
    counter: 0x2122_2324_2526_2728)
let sampleRun = NodeRun(
    node: NodeID(value: 0x6162_6364_6566_6768), incarnation: Incarnation(value: 0x5152_5354_5556_5758))
let sampleDisk: UInt64 = 0x7172_7374_7576_7778

func bytes(_ text: String) -> ByteBuffer { ByteBuffer(string: text) }

/// In the order of `FrameType.allCases`.
let sampleMessages: [PeerMessage] = [
    .hello(
        Hello(
            versions: .current, run: sampleKey.ingress, nonce: 0x3132_3334_3536_3738, echo: 0x4142_4344_4546_4748,
            features: .lz4, channel: .bulk, window: PeerLimits.bulkWindow, cluster: Array("prod".utf8),
            name: Array("n1".utf8))),
    .ready(Ready(echo: 0x3132_3334_3536_3738, version: 1)),
    .ping(Ping(Beat(number: 5, at: Instant(nanoseconds: 1_700_000_000_123_456_789)))),
    .pong(Pong(Beat(number: 5, at: Instant(nanoseconds: 1_700_000_000_123_456_789)))),
    .credit(Credit(FrameCost(octets: 2_097_152, frames: 17))),
    .goodbye(Goodbye(.drained)),
    .error(ErrorReport(.wrongCluster)),
    .submit(
        Submit(
            key: sampleKey, receiver: sampleRun.incarnation, envelope: bytes("env"), body: bytes("hello"),
            bodyOctets: 5, isCompressed: false)),
    .submitted(Submitted(key: sampleKey, receiver: sampleRun, answer: .refused(.otherIncarnation))),
    .ask(Ask(key: sampleKey, receiver: sampleRun)),
    .create(Create(segment: sampleSegment, epoch: 3, reserve: 64 * 1024 * 1024)),
    .created(
        Created(
            segment: sampleSegment, epoch: 3, incarnation: sampleRun.incarnation, disk: sampleDisk, status: .noRoom)),
    .append(
        Append(
            segment: sampleSegment, epoch: 3, offset: 8192, chunkOctets: 4096, position: 4092, octets: bytes("BTNC"))),
    .durable(
        Durable(
            segment: sampleSegment, epoch: 3, upTo: 12288, incarnation: sampleRun.incarnation, status: .durable)),
    .outcome(
        OutcomeRecords(segment: sampleSegment, epoch: 4, from: 0, count: 2, records: bytes("records"), isLate: true)),
    .recorded(
        Recorded(segment: sampleSegment, epoch: 4, memory: 900, synced: 850, incarnation: sampleRun.incarnation)),
    .fetch(Fetch(request: 77, segment: sampleSegment, epoch: 4, from: 4096, atMost: 1 << 20, part: .outcomes)),
    .chunk(
        CopyPart(
            request: 77, segment: sampleSegment, epoch: 4, offset: 4096, part: .segment, status: .octets, isLast: true,
            octets: bytes("bytes"))),
    .seal(Seal(segment: sampleSegment, epoch: 5)),
    .sealed(
        Sealed(
            segment: sampleSegment, epoch: 5, length: 4096, logLength: nil, incarnation: sampleRun.incarnation,
            status: .sealed, hasInvalidTail: true)),
    .finished(Finished(segment: sampleSegment, epoch: 6)),
    .unlinked(Unlinked(segment: sampleSegment, revision: 6, disk: sampleDisk)),
    .promiseAsked(
        PromiseAsked(
            number: 8, askedAt: Instant(secondsSinceEpoch: 1_700_000_000),
            items: [PromiseItem(segment: sampleSegment, epoch: 6)])),
    .promise(
        Promise(
            number: 8, askedAt: Instant(secondsSinceEpoch: 1_700_000_000), span: .seconds(2),
            items: [PromiseItem(segment: sampleSegment, epoch: 6)])),
    .quota(
        Quota(
            verb: .grant, kind: .rate, span: .seconds(30), request: 9, share: 10, amount: 6000,
            site: Array("gmail.com".utf8))),
    .query(Query(request: 11, name: Array("/api/v1/queue".utf8), json: bytes("{}"))),
    .answer(Answer(request: 11, status: 200, json: bytes("{\"total\":1}"))),
]

/// Valid messages of every type with values from a seed.
struct RandomMessages {
    var random: SplitMix64

    init(seed: UInt64) {
        self.random = SplitMix64(seed: seed)
    }

    mutating func octets(_ count: ClosedRange<Int>) -> ByteBuffer {
        ByteBuffer(bytes: array(count))
    }

    mutating func array(_ count: ClosedRange<Int>) -> [UInt8] {
        (0..<Int.random(in: count, using: &random)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    mutating func run() -> NodeRun {
        NodeRun(node: NodeID(value: random.next()), incarnation: Incarnation(value: random.next()))
    }

    mutating func key() -> MessageKey { MessageKey(ingress: run(), counter: random.next()) }

    mutating func segment() -> SegmentID {
        let run = run()
        return SegmentID(writer: run.node, incarnation: run.incarnation, index: random.next())
    }

    mutating func offset() -> Int64 { Int64.random(in: 0...(Int64.max / 2), using: &random) }

    mutating func instant() -> Instant { Instant(nanoseconds: Int64(bitPattern: random.next())) }

    mutating func pick<Value>(_ values: [Value]) -> Value { values[Int.random(in: 0..<values.count, using: &random)] }

    mutating func items(_ count: ClosedRange<Int>) -> [PromiseItem] {
        (0..<Int.random(in: count, using: &random)).map { _ in PromiseItem(segment: segment(), epoch: random.next()) }
    }

    mutating func span() -> TimeSpan { .milliseconds(Int64.random(in: 1...60_000, using: &random)) }

    mutating func message(_ type: FrameType) -> PeerMessage {
        switch type {
        case .hello:
            return .hello(
                Hello(
                    versions: VersionRange(lowest: 1, highest: UInt16.random(in: 1...9, using: &random)), run: run(),
                    nonce: random.next() | 1, echo: random.next(),
                    features: PeerFeatures(rawValue: UInt32(truncatingIfNeeded: random.next())),
                    channel: pick(PeerChannel.allCases),
                    window: FrameCost(
                        octets: Int.random(
                            in: PeerLimits.windowOctetsMin...PeerLimits.windowOctetsMax, using: &random),
                        frames: Int.random(
                            in: PeerLimits.windowFramesMin...PeerLimits.windowFramesMax, using: &random)),
                    cluster: array(1...PeerLimits.nameOctets), name: array(1...PeerLimits.nameOctets)))
        case .ready: return .ready(Ready(echo: random.next(), version: UInt16(truncatingIfNeeded: random.next())))
        case .ping: return .ping(Ping(Beat(number: random.next(), at: instant())))
        case .pong: return .pong(Pong(Beat(number: random.next(), at: instant())))
        case .credit:
            return .credit(
                Credit(
                    FrameCost(
                        octets: Int.random(in: 1...PeerLimits.windowOctetsMax, using: &random),
                        frames: Int.random(in: 1...PeerLimits.windowFramesMax, using: &random))))
        case .goodbye: return .goodbye(Goodbye(pick(GoodbyeReason.allCases)))
        case .error:
            return .error(
                ErrorReport(
                    code: UInt16(truncatingIfNeeded: random.next()), text: array(0...PeerLimits.errorTextOctets)))
        case .submit:
            let body = octets(0...2000)
            let isCompressed = body.readableBytes > 0 && random.next() & 1 == 0
            return .submit(
                Submit(
                    key: key(), receiver: run().incarnation, envelope: octets(1...500), body: body,
                    bodyOctets: isCompressed
                        ? Int.random(in: 0...Limits.fragmentThreshold, using: &random) : body.readableBytes,
                    isCompressed: isCompressed))
        case .submitted:
            let answer = pick([.stored, .pending, .unknown] + SubmitRefusal.allCases.map { SubmitAnswer.refused($0) })
            return .submitted(Submitted(key: key(), receiver: run(), answer: answer))
        case .ask: return .ask(Ask(key: key(), receiver: run()))
        case .create: return .create(Create(segment: segment(), epoch: random.next(), reserve: offset()))
        case .created:
            return .created(
                Created(
                    segment: segment(), epoch: random.next(), incarnation: run().incarnation, disk: random.next(),
                    status: pick(Created.Status.allCases)))
        case .append:
            let octets = octets(1...3000)
            let position = Int.random(in: 0...10_000, using: &random)
            return .append(
                Append(
                    segment: segment(), epoch: random.next(), offset: offset(),
                    chunkOctets: position + octets.readableBytes + Int.random(in: 0...100, using: &random),
                    position: position, octets: octets))
        case .durable:
            return .durable(
                Durable(
                    segment: segment(), epoch: random.next(), upTo: offset(), incarnation: run().incarnation,
                    status: pick(Durable.Status.allCases)))
        case .outcome:
            let isLate = random.next() & 1 == 0
            return .outcome(
                OutcomeRecords(
                    segment: segment(), epoch: random.next(), from: isLate ? 0 : offset(),
                    count: Int.random(in: 1...20, using: &random), records: octets(20...900), isLate: isLate))
        case .recorded:
            let memory = offset()
            return .recorded(
                Recorded(
                    segment: segment(), epoch: random.next(), memory: memory,
                    synced: Int64.random(in: 0...memory, using: &random), incarnation: run().incarnation))
        case .fetch:
            return .fetch(
                Fetch(
                    request: random.next() | 1, segment: segment(), epoch: random.next(), from: offset(),
                    atMost: Int.random(in: 1...Int(UInt32.max), using: &random), part: pick(SegmentPart.allCases)))
        case .chunk:
            let status = pick(CopyPart.Status.allCases)
            let octets = status == .octets ? octets(0...3000) : ByteBuffer()
            return .chunk(
                CopyPart(
                    request: random.next(), segment: segment(), epoch: random.next(), offset: offset(),
                    part: pick(SegmentPart.allCases), status: status,
                    isLast: octets.readableBytes == 0 || random.next() & 1 == 0, octets: octets))
        case .seal: return .seal(Seal(segment: segment(), epoch: random.next()))
        case .sealed:
            let length = random.next() & 1 == 0 ? nil : offset()
            return .sealed(
                Sealed(
                    segment: segment(), epoch: random.next(), length: length,
                    logLength: random.next() & 1 == 0 ? nil : offset(), incarnation: run().incarnation,
                    status: pick(Sealed.Status.allCases), hasInvalidTail: length != nil && random.next() & 1 == 0))
        case .finished: return .finished(Finished(segment: segment(), epoch: random.next()))
        case .unlinked: return .unlinked(Unlinked(segment: segment(), revision: random.next(), disk: random.next()))
        case .promiseAsked:
            return .promiseAsked(PromiseAsked(number: random.next(), askedAt: instant(), items: items(1...40)))
        case .promise:
            return .promise(
                Promise(number: random.next(), askedAt: instant(), span: span(), items: items(0...40)))
        case .quota:
            let verb = pick(Quota.Verb.allCases)
            let amount = random.next() | 1
            return .quota(
                Quota(
                    verb: verb, kind: pick(Quota.Kind.allCases), span: verb == .grant ? span() : .zero,
                    request: random.next(), share: random.next() | 1, amount: amount,
                    site: array(1...PeerLimits.siteOctets)))
        case .query:
            return .query(
                Query(request: random.next(), name: array(1...PeerLimits.queryNameOctets), json: octets(0...2000)))
        case .answer:
            return .answer(
                Answer(
                    request: random.next(), status: UInt16.random(in: 100...599, using: &random), json: octets(0...2000)
                ))
        }
    }
}
