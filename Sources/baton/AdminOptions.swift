// Which node the admin commands talk to, and with which token.
import ArgumentParser
import BatonCore
import BatonNode
import Glibc

struct AdminOptions: ParsableArguments {
    @Option(
        name: .long,
        help: ArgumentHelp(
            "The node's admin HTTP; default: that of --config, else http://127.0.0.1:8025.", valueName: "url"))
    var admin: String?

    @Option(name: .long, help: ArgumentHelp("The node's configuration file.", valueName: "file"))
    var config: String?

    @Option(
        name: .long,
        help: ArgumentHelp("A file with the token; default: data_dir/admin.token of --config.", valueName: "file"))
    var tokenFile: String?

    @Flag(name: .long, help: "Print the node's JSON.")
    var json = false

    /// The order is: `--token-file`, `BATON_ADMIN_TOKEN`, the data directory of `--config` (without `--admin` or `--config`:
    /// of a node with defaults in this directory).
    func client(environment: String? = getenv("BATON_ADMIN_TOKEN").map { String(cString: $0) }) throws -> AdminClient {
        let configuration = try config.map(ConfigurationFile.load)
        let url = admin ?? Self.url(of: configuration ?? ConfigurationLoader.embeddedDefaults())
        var token: AdminToken?
        do {
            if let tokenFile {
                token = try AdminToken.read(tokenFile, anyMode: true)
            } else if let environment, !environment.isEmpty {
                token = AdminToken(Array(environment.utf8))
                if token == nil {
                    throw CommandFailure(code: EX_NOPERM, text: "BATON_ADMIN_TOKEN: 16 to 256 visible characters")
                }
            } else if configuration != nil || admin == nil {
                let directory = (configuration ?? ConfigurationLoader.embeddedDefaults()).node.dataDirectory
                token = try AdminToken.read(directory + "/" + AdminToken.fileName)
            } else {
                throw CommandFailure(
                    code: EX_NOPERM, text: "--admin without --config needs --token-file or BATON_ADMIN_TOKEN")
            }
        } catch let error as AdminToken.FileError {
            throw CommandFailure(code: EX_NOPERM, text: "no token: \(error)")
        }
        do {
            return try AdminClient(url: url, token: token)
        } catch { throw CommandFailure(code: EX_USAGE, text: error.description) }
    }

    /// A node that listens on every address is reached on loopback.
    static func url(of configuration: NodeConfiguration) -> String {
        var endpoint = configuration.admin.address
        if endpoint.address.octets.allSatisfy({ $0 == 0 }) {
            endpoint = SocketEndpoint(
                address: .init(endpoint.address.isIPv4 ? "127.0.0.1" : "::1"), port: endpoint.port)
        }
        return "http://\(endpoint)"
    }

    /// Runs a request and turns its failures into exit codes: 69 unreachable, 77 not allowed, 1 refused.
    func asking<Value>(_ body: (AdminClient) throws -> Value) throws -> Value {
        let client = try client()
        do {
            return try body(client)
        } catch let failure as AdminClient.Failure {
            let code: Int32 =
                switch failure {
                case .url: EX_USAGE
                case .connect, .exchange: EX_UNAVAILABLE
                case .problem(let problem): problem.status == 401 || problem.status == 403 ? EX_NOPERM : 1
                }
            throw CommandFailure(code: code, text: failure.description)
        }
    }
}
