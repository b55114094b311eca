// What an HTTP server can do to the client, and what the client's bounds do.
import BatonCore
import BatonHTTPClient
import BatonRuntime
import BatonTestKit
import Glibc
import Synchronization
import Testing

private func milliseconds(connect: Int64 = 5000, first: Int64 = 5000, stall: Int64 = 5000, total: Int64 = 10000)
    -> HTTPTimeouts
{
    HTTPTimeouts(
        connect: .milliseconds(connect), firstOctet: .milliseconds(first), stall: .milliseconds(stall),
        total: .milliseconds(total))
}

/// A server, a client, and their end.
private func withServer(
    transfersMax: Int = 256, _ script: @escaping @Sendable (Int, ServerConnection) -> Void,
    _ body: (ScriptedServer, CurlThread) async throws -> Void
) async rethrows {
    let server = ScriptedServer(script)
    let client = CurlThread(name: "curl-test", transfersMax: transfersMax)
    defer {
        client.stop()
        server.stop()
    }
    try await body(server, client)
}

private func failure(_ client: CurlThread, _ request: HTTPRequest) async -> HTTPError? {
    do {
        _ = try await client.perform(request)
        return nil
    } catch {
        return error
    }
}

@Suite(.serialized, .timeLimit(.minutes(1)))
struct CurlThreadTests {
    @Test func answerArrivesChanged() async throws {
        let seen = Mutex("")
        try await withServer({ _, connection in
            let request = connection.readRequest() ?? ""
            seen.withLock { $0 = request }
            connection.answer("{\"a\":1}", status: "404 Not Found", headers: "X-One:  two \r\nx-one: three\r\n")
        }) { server, client in
            let response = try await client.perform(
                HTTPRequest(
                    .post, server.url + "v3/x?y=1", headers: [HTTPHeader("X-Mine", "yes")], body: Array("hello".utf8),
                    timeouts: milliseconds(), credentials: HTTPCredentials(user: "u", password: "p:w")))
            #expect(response.status == 404)
            #expect(response.body == Array("{\"a\":1}".utf8))
            #expect(response.header("X-ONE") == "two")
            let request = seen.withLock { $0 }
            #expect(request.hasPrefix("POST /v3/x?y=1 HTTP/1.1\r\n"))
            #expect(request.contains("X-Mine: yes\r\n"))
            #expect(request.contains("Authorization: Basic dTpwOnc=\r\n"))
            #expect(request.hasSuffix("\r\n\r\nhello"))
            #expect(!request.contains("Expect"))
        }
    }

    /// A reused connection that ends without an answer: curl would send a request again by itself.
    @Test(arguments: [false, true])
    func requestIsSentTwiceBehindTheCallersBack(isRepeatable: Bool) async throws {
        let copies = Mutex(0)
        try await withServer({ _, connection in
            guard let first = connection.readRequest() else { return }
            if first.hasSuffix("second") { copies.withLock { $0 += 1 } }
            connection.answer("ok")
            // The same connection's next request is read whole, and never answered.
            if connection.readRequest()?.hasSuffix("second") == true { copies.withLock { $0 += 1 } }
        }) { server, client in
            _ = try await client.perform(
                HTTPRequest(.post, server.url, body: Array("first".utf8), timeouts: milliseconds()))
            let second = HTTPRequest(
                .post, server.url, body: Array("second".utf8), timeouts: milliseconds(), isRepeatable: isRepeatable)
            let error = await failure(client, second)
            if isRepeatable {
                // The danger is real: this is what the default guards against.
                #expect(error == nil)
                #expect(copies.withLock { $0 } == 2)
            } else {
                #expect(error?.kind == .interrupted)
                #expect(error?.mayHaveArrived == true)
                #expect(copies.withLock { $0 } == 1)
            }
        }
    }

    @Test func requestWithoutABodyIsSentTwiceBehindTheCallersBack() async throws {
        let copies = Mutex(0)
        try await withServer({ _, connection in
            while let request = connection.readRequest() {
                guard request.hasPrefix("POST") else {
                    connection.answer("ok")
                    continue
                }
                copies.withLock { $0 += 1 }
                return
            }
        }) { server, client in
            _ = try await client.perform(HTTPRequest(.get, server.url, timeouts: milliseconds()))
            let error = await failure(client, HTTPRequest(.post, server.url, timeouts: milliseconds()))
            #expect(error?.mayHaveArrived == true)
            #expect(copies.withLock { $0 } == 1)
        }
    }

    @Test func answerLongerThanItsBound() async {
        await withServer({ _, connection in
            _ = connection.readRequest()
            connection.answer(String(repeating: "x", count: 1001))
        }) { server, client in
            var request = HTTPRequest(.get, server.url, responseBytesMax: 1000, timeouts: milliseconds())
            #expect(await failure(client, request)?.kind == .tooLarge)
            request.responseBytesMax = 1001
            #expect(await failure(client, request) == nil)
        }
    }

    @Test func headersLongerThanTheirBound() async {
        await withServer({ _, connection in
            _ = connection.readRequest()
            let line = "X-Filler: " + String(repeating: "y", count: 990) + "\r\n"
            connection.answer("ok", headers: String(repeating: line, count: 70))
        }) { server, client in
            let error = await failure(client, HTTPRequest(.get, server.url, timeouts: milliseconds()))
            #expect(error?.kind == .tooLarge)
        }
    }

    @Test func serverThatNeverAnswers() async {
        await withServer({ _, connection in while connection.readSome() != nil {} }) { server, client in
            let body = Array("x".utf8)
            for timeouts in [milliseconds(first: 100), milliseconds(total: 100)] {
                let error = await failure(client, HTTPRequest(.post, server.url, body: body, timeouts: timeouts))
                #expect(error?.kind == .timeout)
                #expect(error?.mayHaveArrived == true)
            }
        }
    }

    @Test func answerThatStalls() async {
        await withServer({ _, connection in
            _ = connection.readRequest()
            connection.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            while connection.readSome() != nil {}
        }) { server, client in
            let error = await failure(client, HTTPRequest(.get, server.url, timeouts: milliseconds(stall: 100)))
            #expect(error?.kind == .timeout)
        }
    }

    @Test func portNobodyListensOn() async {
        let server = ScriptedServer { _, _ in }
        server.stop()
        let client = CurlThread(name: "curl-test")
        defer { client.stop() }
        let error = await failure(
            client, HTTPRequest(.post, server.url, body: Array("x".utf8), timeouts: milliseconds()))
        #expect(error?.kind == .connect)
        #expect(error?.mayHaveArrived == false)
    }

    @Test func requestThatCannotBeMade() async {
        let client = CurlThread(name: "curl-test")
        defer { client.stop() }
        let header = HTTPRequest(.get, "http://127.0.0.1:1/", headers: [HTTPHeader("A", "b\r\nC: d")])
        for request in [
            header, HTTPRequest(.get, "file:///etc/passwd"), HTTPRequest(.get, "http://127.0.0.1:1/\r\nX: y"),
            HTTPRequest(.get, ""),
        ] {
            let error = await failure(client, request)
            #expect(error?.kind == .invalidRequest)
            #expect(error?.mayHaveArrived == false)
        }
    }

    @Test func redirectIsFollowed() async throws {
        try await withServer({ number, connection in
            _ = connection.readRequest()
            connection.answer("", status: "302 Found", headers: "Location: /elsewhere\r\n")
        }) { server, client in
            let response = try await client.perform(HTTPRequest(.get, server.url, timeouts: milliseconds()))
            #expect(response.status == 302)
        }
    }

    @Test func proxyOfTheEnvironmentIsUsed() async throws {
        setenv("http_proxy", "http://127.0.0.1:1", 1)
        defer { unsetenv("http_proxy") }
        try await withServer({ _, connection in
            _ = connection.readRequest()
            connection.answer("direct")
        }) { server, client in
            let response = try await client.perform(HTTPRequest(.get, server.url, timeouts: milliseconds()))
            #expect(response.body == Array("direct".utf8))
        }
    }

    /// OpenSSL writes without MSG_NOSIGNAL. The thread must not lean on the mask that it inherits.
    @Test func brokenPipeSignalReachesTheThread() async {
        let client = Self.withoutBlockedSignals { CurlThread(name: "curl-test") }
        defer { client.stop() }
        let isBlocked = await withCheckedContinuation { continuation in
            client.after(.zero) {
                var mask = sigset_t()
                pthread_sigmask(SIG_BLOCK, nil, &mask)
                continuation.resume(returning: sigismember(&mask, SIGPIPE) == 1)
            }
        }
        #expect(isBlocked)
    }

    private static func withoutBlockedSignals<Value>(_ body: () -> Value) -> Value {
        var none = sigset_t()
        var before = sigset_t()
        sigemptyset(&none)
        pthread_sigmask(SIG_SETMASK, &none, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        return body()
    }

    @Test func brokenPipeEndsTheProcess() async {
        await withServer({ _, connection in
            // Unread octets at the close make the kernel reset the connection while the client still writes.
            _ = connection.readSome()
        }) { server, client in
            let body = [UInt8](repeating: 0x61, count: 16 * 1024 * 1024)
            let error = await failure(client, HTTPRequest(.post, server.url, body: body, timeouts: milliseconds()))
            #expect(error?.mayHaveArrived == true)
        }
    }

    @Test func cancelledRequestGoesOn() async {
        await withServer({ _, connection in while connection.readSome() != nil {} }) { server, client in
            let task = Task { await failure(client, HTTPRequest(.get, server.url, timeouts: milliseconds())) }
            task.cancel()
            let error = await task.value
            #expect(error?.kind == .cancelled)
        }
    }

    @Test func stoppedClientLeavesRequestsWithoutAnEnd() async {
        await withServer({ _, connection in while connection.readSome() != nil {} }) { server, client in
            let url = server.url
            async let first = failure(client, HTTPRequest(.get, url, timeouts: milliseconds()))
            async let second = failure(client, HTTPRequest(.get, url, timeouts: milliseconds()))
            // Whether they have begun or not, both end.
            client.stop()
            #expect(await first?.kind == .stopped)
            #expect(await second?.kind == .stopped)
            #expect(await failure(client, HTTPRequest(.get, url))?.kind == .stopped)
        }
    }

    @Test func transfersOverTheirBound() async {
        await withServer(transfersMax: 2, { _, connection in while connection.readSome() != nil {} }) {
            server, client in
            let ended = Mutex<[HTTPError.Kind]>([])
            let request = HTTPRequest(.get, server.url, timeouts: milliseconds())
            for _ in 0..<3 {
                client.submit(request) { result in
                    if case .failure(let error) = result { ended.withLock { $0.append(error.kind) } }
                }
            }
            #expect(ended.withLock { $0 } == [.overloaded])
            client.stop()
            #expect(ended.withLock { $0 } == [.overloaded, .stopped, .stopped])
        }
    }

    @Test func connectionsOverTheirBoundWait() async {
        let open = Mutex((now: 0, most: 0))
        await withServer({ _, connection in
            open.withLock {
                $0.now += 1
                $0.most = max($0.most, $0.now)
            }
            while connection.readRequest() != nil { connection.answer("ok") }
            open.withLock { $0.now -= 1 }
        }) { server, client in
            let request = HTTPRequest(.get, server.url, timeouts: milliseconds())
            let failures = await withTaskGroup(of: HTTPError?.self) { group in
                for _ in 0..<200 { group.addTask { await failure(client, request) } }
                return await group.reduce(into: 0) { $0 += $1 == nil ? 0 : 1 }
            }
            #expect(failures == 0)
            #expect(open.withLock { $0.most } <= HTTPClientLimits.connections)
        }
    }

    @Test func timersOverTheirBound() async {
        let client = CurlThread(name: "curl-test")
        let ran = Mutex(0)
        await withCheckedContinuation { continuation in
            client.after(.milliseconds(20)) {
                ran.withLock { $0 += 1 }
                continuation.resume()
            }
        }
        #expect(ran.withLock { $0 } == 1)
        for _ in 0..<HTTPClientLimits.timers { #expect(client.after(.hours(1)) {}) }
        #expect(!client.after(.hours(1)) {})
        client.stop()
        #expect(!client.after(.zero) {})
    }

    @Test func streamComesWholeOrWithoutItsEnd() async {
        await withServer({ _, connection in
            let request = connection.readRequest() ?? ""
            connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            connection.write("5\r\nhello\r\n")
            connection.write("1\r\n!\r\n")
            // Without the last chunk the answer is cut.
            if request.contains("/whole") { connection.write("0\r\n\r\n") }
        }) { server, client in
            for (path, whole) in [("whole", true), ("cut", false)] {
                let events = await events(client, HTTPRequest(.get, server.url + path, timeouts: milliseconds()))
                var text: [UInt8] = []
                for case .bytes(let bytes) in events { text += bytes }
                #expect(text == Array("hello!".utf8))
                if case .head(let status)? = events.first { #expect(status == 200) } else { Issue.record("no head") }
                if case .end(let error)? = events.last {
                    #expect((error == nil) == whole)
                } else {
                    Issue.record("no end")
                }
            }
        }
    }

    private func events(_ client: CurlThread, _ request: HTTPRequest) async -> [HTTPStreamEvent] {
        let (stream, continuation) = AsyncStream<HTTPStreamEvent>.makeStream()
        _ = client.stream(request) { event in
            continuation.yield(event)
            if case .end = event { continuation.finish() }
        }
        var all: [HTTPStreamEvent] = []
        for await event in stream { all.append(event) }
        return all
    }

    @Test func passwordIsPrinted() {
        let request = HTTPRequest(.get, "http://x/", credentials: HTTPCredentials(user: "u", password: "sesame"))
        #expect(!"\(request)".contains("sesame"))
        #expect(!String(reflecting: request).contains("sesame"))
        var dumped = ""
        dump(request, to: &dumped)
        #expect(!dumped.contains("sesame"))
    }
}
