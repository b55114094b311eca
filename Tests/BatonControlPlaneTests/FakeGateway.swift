// A gateway that answers as a test says, for what a real etcd does only rarely.
import BatonControlPlane
import BatonCore
import BatonTestKit
import Synchronization

/// What the gateway does with a request.
enum GatewayReply: Sendable {
    case ok(String)
    case error(status: Int, String)
    /// Neither answers nor closes, until the client does.
    case hang
    /// Closes without an answer.
    case close
    /// The connection is the handler's.
    case handled
}

final class FakeGateway: Sendable {
    static let header = #""header":{"cluster_id":"7","revision":"9"}"#

    private let server: ScriptedServer
    private let log = Log()

    private final class Log: Sendable {
        let paths = Mutex<[String]>([])
    }

    init(_ reply: @escaping @Sendable (_ path: String, _ body: String, ServerConnection) -> GatewayReply) {
        server = ScriptedServer { [log] _, connection in
            while let request = connection.readRequest() {
                let path = String(request.split(separator: " ").dropFirst().first ?? "")
                let lines = request.split(separator: "\r\n", omittingEmptySubsequences: false)
                log.paths.withLock { $0.append(path) }
                switch reply(path, String(lines.last ?? ""), connection) {
                case .ok(let body): connection.answer(body)
                case .error(let status, let body): connection.answer(body, status: "\(status) No")
                case .hang: while connection.readSome() != nil {}
                case .close, .handled: return
                }
            }
        }
    }

    var settings: EtcdSettings { EtcdSettings(endpoints: [server.url]) }
    func count(_ path: String) -> Int { log.paths.withLock { paths in paths.count { $0 == path } } }
    func stop() { server.stop() }
}
