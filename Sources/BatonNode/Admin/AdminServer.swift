// The admin HTTP's socket: Hummingbird on the control loop, in front of `AdminRoutes`.
import BatonCore
import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import ServiceLifecycle
import Synchronization

/// Serves until its task is cancelled or graceful shutdown is triggered. Runs on the event loop group given (the control
/// loop) and the default executor; nothing here touches a data loop.
package struct AdminServer: Service {
    private let routes: AdminRoutes
    private let address: SocketEndpoint
    private let group: any EventLoopGroup
    private let logger: Logger
    private let onListening: @Sendable (Int) async -> Void

    /// `onListening` gets the port in use once the socket is bound (that of `address`, or the one the system chose for 0).
    package init(
        address: SocketEndpoint, node: any NodeInspecting, metrics: PrometheusText, token: AdminToken,
        group: any EventLoopGroup, logger: Logger, onListening: @escaping @Sendable (Int) async -> Void = { _ in }
    ) {
        self.routes = AdminRoutes(node: node, metrics: metrics, token: token)
        self.address = address
        self.group = group
        self.logger = logger
        self.onListening = onListening
    }

    /// Throws a `NodeError` where the address cannot be bound.
    package func run() async throws {
        let listening = onListening
        let bound = Flag()
        var quiet = logger
        // Hummingbird tells of each connection at debug and of its start at info: neither is the operator's business.
        quiet.logLevel = max(logger.logLevel, .warning)
        let application = Application(
            responder: AdminResponder(routes: routes),
            server: .http1(
                configuration: HTTP1Channel.Configuration(
                    idleTimeout: .nanoseconds(AdminLimits.idleTimeout.nanoseconds),
                    httpDecoderConfiguration: .init(
                        maxHeaderFieldSize: AdminLimits.headerOctets, maxHeaderListSize: AdminLimits.headerOctets,
                        maxHeaderFieldCount: AdminLimits.headerFields))),
            configuration: ApplicationConfiguration(
                address: .hostname(address.address.description, port: address.port), serverName: "baton",
                availableConnectionsDelegate: MaximumAvailableConnections(AdminLimits.connections, logger: quiet)),
            onServerRunning: { channel in
                bound.set()
                await listening(channel.localAddress?.port ?? 0)
            },
            eventLoopGroupProvider: .shared(group), logger: quiet)
        do {
            try await application.run()
        } catch {
            if bound.isSet { throw error }
            throw NodeError("admin HTTP cannot listen on \(address): \(Self.text(of: error))")
        }
    }
}

extension AdminServer {
    /// The system's word for it, without what NIO says around it.
    static func text(of error: any Error) -> String {
        guard let error = error as? IOError else { return "\(error)" }
        return SystemText.error(error.errnoCode)
    }
}

/// Set once, read by anyone.
private final class Flag: Sendable {
    private let value = Atomic<Bool>(false)
    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
}

/// Reads the body under its bound and the whole under its time.
private struct AdminResponder: HTTPResponder {
    typealias Context = BasicRequestContext

    let routes: AdminRoutes
    private let calls = CallCount()

    init(routes: AdminRoutes) {
        self.routes = routes
    }

    func respond(to request: Request, context: Context) async throws -> Response {
        let isHead = request.method == .head
        // Structured: reading a body ends when it is cancelled.
        let read = await withTaskGroup(of: Result<AdminRequest, ProblemReport>.self) { group in
            group.addTask { await whole(request) }
            group.addTask {
                try? await Task.sleep(nanoseconds: UInt64(AdminLimits.requestTimeout.nanoseconds))
                return .failure(ProblemReport(408, "Request Timeout", "the body did not arrive in time"))
            }
            let first = await group.next()
            group.cancelAll()
            return first ?? .failure(ProblemReport(500, "Internal Server Error", "no request"))
        }
        switch read {
        case .failure(let problem): return response(.problem(problem), head: isHead)
        case .success(let request): return response(await answerInTime(request), head: isHead)
        }
    }

    private func whole(_ request: Request) async -> Result<AdminRequest, ProblemReport> {
        var request = request
        do {
            let body = try await request.collectBody(upTo: AdminLimits.bodyOctets)
            return .success(
                AdminRequest(
                    method: request.method.rawValue, path: request.uri.path, query: request.uri.query ?? "",
                    authorization: request.headers[.authorization], body: Array(body.readableBytesView)))
        } catch {
            return .failure(ProblemReport(413, "Content Too Large", "at most \(AdminLimits.bodyOctets) octets"))
        }
    }

    /// The node's answer, or 503 when it is late. Tasks of their own, since a call that a stuck thread or loop keeps
    /// waiting does not end by being cancelled; at most `AdminLimits.connections` of them wait at a time.
    private func answerInTime(_ request: AdminRequest) async -> AdminAnswer {
        let late = AdminAnswer.problem(ProblemReport(503, "Service Unavailable", "the node did not answer in time"))
        guard calls.enter() else { return late }
        let (stream, continuation) = AsyncStream.makeStream(of: AdminAnswer.self, bufferingPolicy: .bufferingOldest(1))
        let work = Task {
            continuation.yield(await routes.answer(request))
            calls.leave()
        }
        let timer = Task {
            try? await Task.sleep(nanoseconds: UInt64(AdminLimits.requestTimeout.nanoseconds))
            continuation.yield(late)
        }
        defer {
            work.cancel()
            timer.cancel()
        }
        for await answer in stream { return answer }
        return late
    }

    /// Node calls under way.
    private final class CallCount: Sendable {
        private let count = Atomic<Int>(0)

        func enter() -> Bool {
            let (old, _) = count.wrappingAdd(1, ordering: .relaxed)
            if old < AdminLimits.connections { return true }
            leave()
            return false
        }

        func leave() { count.wrappingSubtract(1, ordering: .relaxed) }
    }

    private func response(_ answer: AdminAnswer, head: Bool) -> Response {
        var headers = HTTPFields()
        headers[.contentType] = answer.contentType
        headers[.cacheControl] = "no-store"
        if let allow = answer.allow { headers[.allow] = allow }
        if answer.challenge { headers[.wwwAuthenticate] = "Bearer realm=\"baton\"" }
        if head {
            headers[.contentLength] = "\(answer.body.count)"
            return Response(status: .init(code: answer.status), headers: headers)
        }
        return Response(
            status: .init(code: answer.status), headers: headers,
            body: ResponseBody(byteBuffer: ByteBuffer(bytes: answer.body)))
    }
}
