// The values of the etcd plane: JSON, base64, messages, failover.
import BatonCore
import BatonHTTPClient
import Testing

@testable import BatonControlPlane

private let start = Instant(secondsSinceEpoch: 1_000)

struct JSONTests {
    private func read(_ text: String) -> JSONValue? { JSONValue(Array(text.utf8)) }

    @Test func numberLosesItsLowBits() {
        let json = read(#"{"a":"9223372036854775807","b":9007199254740993,"c":"18446744073709551615","d":"1e3"}"#)
        #expect(json?["a"]?.int64 == .max)
        #expect(json?["b"]?.int64 == 9_007_199_254_740_993)
        #expect(json?["c"]?.uint64 == .max)
        #expect(json?["c"]?.int64 == nil)
        #expect(json?["d"]?.int64 == nil)
    }

    @Test func escapesAreMisread() {
        #expect(read(#" "a\"\\\/\n\u0041\ud83d\ude00é" "#)?.text == "a\"\\/\nA😀é")
        #expect(JSONValue(Array(JSONValue.quoted("a\"\\\n\u{1}é").utf8))?.text == "a\"\\\n\u{1}é")
    }

    @Test(arguments: [
        "", "{", "{\"a\"}", "{\"a\":1,}", "[1,]", "nul", "\"a", "\"\\x\"", "\"\\ud800\"", "\"\\ud800\\u0041\"", "1 2",
        "{\"a\":1}}", "\"\u{1}\"", "tru", "[", "\\", "\"\\u00g0\"", "\"\\u+0a1\"", "-", "{1:2}",
    ])
    func brokenJSONIsRead(_ text: String) {
        // A lone sign is text that no number reader takes.
        if text == "-" { #expect(read(text)?.int64 == nil) } else { #expect(read(text) == nil) }
    }

    @Test func nestingOverItsBound() {
        let depth = ControlLimits.depth
        let deep = { (count: Int) in String(repeating: "[", count: count) + String(repeating: "]", count: count) }
        #expect(read(deep(depth)) != nil)
        #expect(read(deep(depth + 1)) == nil)
        #expect(read(String(repeating: "[", count: 1_000_000)) == nil)
    }

    /// Any octets, and any cut of a real answer: read or refused, never a trap.
    @Test func answerIsCutOrGarbled() {
        let answer = Array(
            #"{"header":{"cluster_id":"1","revision":"2"},"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2"}]}"#
                .utf8)
        #expect(JSONValue(answer).flatMap(EtcdAnswer.range) != nil)
        for cut in 0..<answer.count { #expect(JSONValue(Array(answer[..<cut])) == nil) }
        var random = SplitMix64(seed: 5)
        for _ in 0..<5_000 {
            var garbled = answer
            for _ in 0..<3 {
                garbled[Int(random.next() % UInt64(answer.count))] = UInt8(truncatingIfNeeded: random.next())
            }
            guard let json = JSONValue(garbled) else { continue }
            _ = EtcdAnswer.range(json)
            _ = EtcdAnswer.transaction(json)
            _ = EtcdAnswer.watchLine(json)
            _ = EtcdError(json)
        }
    }

    @Test func base64ChangesOctets() {
        var random = SplitMix64(seed: 6)
        for length in 0..<100 {
            let bytes = (0..<length).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            let text = Base64.encode(bytes)
            #expect(Base64.decode(text.utf8) == bytes)
            #expect(text.utf8.count == (length + 2) / 3 * 4)
        }
        #expect(Base64.encode([0xfb, 0xff]) == "+/8=")
        for wrong in ["a", "ab=c", "a===", "====", "ab!d", "abc==", "abcd=", "ab=="] where wrong != "ab==" {
            #expect(Base64.decode(wrong.utf8) == nil, "\(wrong)")
        }
    }
}

struct EtcdAnswerTests {
    private func json(_ text: String) -> JSONValue { JSONValue(Array(text.utf8)) ?? .null }
    private let header = #""header":{"cluster_id":"7","revision":"9"}"#

    @Test func omittedFieldIsTakenForAFault() {
        // As etcd 3.4.23 writes them.
        guard
            case .conflict(_, current: [])? = EtcdAnswer.transaction(
                json("{\(header),\"responses\":[{\"response_range\":{}}]}"))
        else { return fail("a failed transaction has no succeeded") }
        guard case .committed(let committed)? = EtcdAnswer.transaction(json("{\(header),\"succeeded\":true}")) else {
            return fail("succeeded")
        }
        #expect(committed == ControlHeader(store: 7, revision: 9))
        let lease = ControlLeaseID(value: 77)
        #expect(EtcdAnswer.keepAlive(json("{\"result\":{\(header),\"ID\":\"77\"}}"), lease) == .some(nil))
        #expect(
            EtcdAnswer.keepAlive(json("{\"result\":{\(header),\"ID\":\"77\",\"TTL\":\"5\"}}"), lease)
                == .some(.seconds(5)))
        #expect(EtcdAnswer.keepAlive(json("{\"result\":{\(header),\"ID\":\"78\"}}"), lease) == nil)
        let events = """
            [{"kv":{"key":"YQ==","create_revision":"8","mod_revision":"8","version":"1"}},
            {"type":"DELETE","kv":{"key":"YQ==","mod_revision":"9"}}]
            """
        guard
            case .changes(_, let changes)? = EtcdAnswer.watchLine(json("{\"result\":{\(header),\"events\":\(events)}}"))
        else { return fail("events") }
        #expect(
            changes == [
                .put(ControlEntry(key: "a", value: [], created: 8, modified: 8)), .deleted("a", at: 9),
            ])
        let gone = #"{"result":{"header":{"cluster_id":"7"},"canceled":true,"compact_revision":"2"}}"#
        guard case .cancelled(compacted: true, _)? = EtcdAnswer.watchLine(json(gone)) else { return fail("compacted") }
        guard case .progress? = EtcdAnswer.watchLine(json("{\"result\":{\(header)}}")) else { return fail("progress") }
    }

    @Test func answerOfAnotherKindIsBelieved() {
        for text in [
            "{}", "[]", "{\"succeeded\":true}", "{\(header)}", "{\"header\":{\"revision\":\"3\"},\"responses\":[]}",
        ] {
            #expect(EtcdAnswer.transaction(json(text)) == nil, "\(text)")
        }
        let entry = "{\"key\":\"YQ==\",\"create_revision\":\"0\",\"mod_revision\":\"2\"}"
        #expect(EtcdAnswer.range(json("{\(header),\"kvs\":[\(entry)]}")) == nil)
        #expect(EtcdAnswer.range(json("{\(header),\"kvs\":[{\"key\":\"!\"}]}")) == nil)
        #expect(EtcdAnswer.grant(json("{\"ID\":\"1\"}")) == nil)
        #expect(EtcdAnswer.token(json("{\"token\":\"a\\r\\nb\"}")) == nil)
        #expect(EtcdAnswer.token(json("{\"token\":\"a.b-c\"}")) == "a.b-c")
    }
}

struct EtcdCallStateTests {
    private func call(_ kind: EtcdCallState.Kind, oneTry: Bool = false, credentials: Bool = false) -> EtcdCallState {
        EtcdCallState(
            kind: kind, deadline: start + .seconds(5), isOnlyOneTry: oneTry, members: 3, hasCredentials: credentials)
    }

    private func error(_ code: Int, _ text: String = "") -> EtcdCallState.Event {
        .answered(status: 500, .object(["code": .number("\(code)"), "message": .string(text)]))
    }

    private func lost(_ kind: HTTPError.Kind, arrived: Bool) -> EtcdCallState.Event {
        .failed(HTTPError(kind, mayHaveArrived: arrived, "lost"))
    }

    @Test func changeThatMayHaveArrivedIsSentAgain() {
        let doubtful: [EtcdCallState.Event] = [
            lost(.timeout, arrived: true), lost(.interrupted, arrived: true), lost(.tooLarge, arrived: true),
            lost(.stopped, arrived: true), lost(.cancelled, arrived: true), error(14, "etcdserver: request timed out"),
            error(2), error(4), error(13), error(15), .answered(status: 503, nil), .answered(status: 404, nil),
            .answered(status: 200, nil), .foreign,
        ]
        for event in doubtful {
            var state = call(.change)
            guard case .end(.failure(.unknown)) = state.receive(event, at: start) else {
                fail("\(event)")
                continue
            }
        }
    }

    @Test func unsentChangeOrReadIsGivenUp() {
        for (kind, event) in [
            (EtcdCallState.Kind.change, lost(.connect, arrived: false)), (.change, lost(.tls, arrived: false)),
            (.change, lost(.timeout, arrived: false)), (.read, lost(.timeout, arrived: true)), (.read, error(14)),
            (.read, .answered(status: 503, nil)), (.read, .foreign), (.idempotent, lost(.timeout, arrived: true)),
        ] {
            var state = call(kind)
            // Members one after the other, a pause after the last.
            for pause in [TimeSpan.zero, .zero, ControlLimits.roundPause, .zero] {
                guard case .tryAgain(let wait) = state.receive(event, at: start) else {
                    fail("\(kind) \(event)")
                    break
                }
                #expect(wait == pause)
            }
            guard case .end(.failure(let failure)) = state.receive(event, at: start + .seconds(5)) else {
                fail("no end: \(kind) \(event)")
                continue
            }
            #expect(failure.isUnknown == (kind == .idempotent), "\(kind) \(event)")
        }
    }

    @Test func refusalIsTakenForTrouble() {
        for (code, text, refusal) in [
            (3, "etcdserver: duplicate key given in txn request", ControlRefusal.invalid),
            (3, "etcdserver: authentication failed, invalid user ID or password", .denied),
            (5, "etcdserver: requested lease not found", .leaseGone), (7, "etcdserver: permission denied", .denied),
            (8, "etcdserver: mvcc: database space exceeded", .noSpace),
            (8, "etcdserver: too many requests", .overloaded),
            (11, "etcdserver: mvcc: required revision has been compacted", .compacted),
            (16, "etcdserver: invalid auth token", .denied),
        ] {
            for kind in [EtcdCallState.Kind.change, .read] {
                var state = call(kind)
                guard case .end(.refused(refusal, _)) = state.receive(error(code, text), at: start) else {
                    fail("\(text)")
                    continue
                }
            }
        }
    }

    @Test func tokenIsRenewedForEver() {
        var state = call(.change, credentials: true)
        for event in [error(16), error(3, "etcdserver: user name is empty")] {
            guard case .renewToken = state.receive(event, at: start) else { return fail("not renewed") }
        }
        guard case .end(.refused(.denied, _)) = state.receive(error(16), at: start) else { return fail("no end") }
    }

    @Test func keepAliveTriesTwice() {
        var state = call(.read, oneTry: true)
        guard case .end(.failure) = state.receive(lost(.timeout, arrived: true), at: start) else {
            return fail("again")
        }
    }

    @Test func unusableEndpoints() {
        #expect(EtcdSettings(endpoints: ["http://127.0.0.1:2379/"]).problem == nil)
        #expect(EtcdSettings(endpoints: ["https://[::1]:2379"]).problem == nil)
        for wrong in ["", "127.0.0.1:2379", "ftp://x", "http://", "http://a/b", "http://u@h", "http://a?b"] {
            #expect(EtcdSettings(endpoints: [wrong]).problem != nil, "\(wrong)")
        }
        #expect(EtcdSettings(endpoints: []).problem != nil)
        let many = (0...ControlLimits.endpoints).map { "http://h\($0):1" }
        #expect(EtcdSettings(endpoints: many).problem != nil)
        #expect(throws: ControlFailure.self) { try EtcdControlPlane(EtcdSettings(endpoints: many)) }
    }
}
