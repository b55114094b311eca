// Programs that a scenario starts: spawned in a process group of their own, with their output in a file.
import BatonCore
import Glibc

/// A started program. Ends with `stop`; CPU time is known once it was waited for.
struct ChildProcess: ~Copyable {
    let pid: pid_t
    private(set) var status: Int32?
    private(set) var cpuSeconds = 0.0

    /// Starts `command[0]` (looked up in PATH) with both outputs appended to `log`.
    init(_ command: [String], log: String) throws {
        guard let program = command.first else { throw BenchError("no command") }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0o644)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // This process blocks SIGTERM and ignores SIGPIPE; a child must not inherit that.
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        var standard = sigset_t()
        sigfillset(&standard)
        posix_spawnattr_setsigdefault(&attributes, &standard)
        posix_spawnattr_setpgroup(&attributes, 0)
        let flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP
        posix_spawnattr_setflags(&attributes, Int16(flags))
        var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) }
        arguments.append(nil)
        defer { for argument in arguments { free(argument) } }
        var pid: pid_t = 0
        let failure = posix_spawnp(&pid, program, &actions, &attributes, arguments, environ)
        guard failure == 0 else { throw BenchError.system("start \(program)", failure) }
        self.pid = pid
    }

    /// True once it has ended.
    mutating func hasEnded() -> Bool { reap(WNOHANG) }

    mutating func signal(_ number: Int32) {
        if status == nil { kill(-pid, number) }
    }

    /// SIGTERM, then SIGKILL after `grace` (nanoseconds); waits for the end.
    mutating func stop(grace: Int64) {
        signal(SIGTERM)
        var left = grace
        while !hasEnded(), left > 0 {
            usleep(5000)
            left -= 5_000_000
        }
        if status == nil { kill9() }
        // What the program left behind in its group goes too.
        kill(-pid, SIGKILL)
    }

    /// SIGKILL, and waits.
    mutating func kill9() {
        signal(SIGKILL)
        while !reap(0) {}
    }

    /// The exit code; 128 + number for a signal; nil while it runs.
    var exitCode: Int? {
        guard let status else { return nil }
        let number = Int(status & 0x7f)
        return number == 0 ? Int(status >> 8 & 0xff) : 128 + number
    }

    private mutating func reap(_ options: Int32) -> Bool {
        if status != nil { return true }
        var raw: Int32 = 0
        var usage = rusage()
        let result = wait4(pid, &raw, options, &usage)
        if result == 0 { return false }
        if result < 0 {
            if errno == EINTR { return false }
            // No such child: ended and gone, nothing more to learn.
            status = 0
            return true
        }
        status = raw
        func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
        cpuSeconds = seconds(usage.ru_utime) + seconds(usage.ru_stime)
        return true
    }
}

/// Loopback ports and banners.
enum Ports {
    /// A TCP port that was free a moment ago.
    static func free() throws -> Int {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { throw BenchError.system("socket", errno) }
        defer { _ = close(descriptor) }
        var address = loopback(0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                bind(descriptor, generic, length) == 0 && getsockname(descriptor, generic, &length) == 0
            }
        }
        guard bound else { throw BenchError.system("bind", errno) }
        return Int(UInt16(bigEndian: address.sin_port))
    }

    /// Whether a server greets on the port within about a second (`2xx`).
    static func greets(_ port: Int) -> Bool {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else { return false }
        defer { _ = close(descriptor) }
        var wait = timeval(tv_sec: 1, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &wait, socklen_t(MemoryLayout<timeval>.size))
        var address = loopback(port)
        let connected = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
        guard connected else { return false }
        var first: UInt8 = 0
        let greeted = recv(descriptor, &first, 1, 0) == 1 && first == UInt8(ascii: "2")
        if greeted { _ = send(descriptor, "QUIT\r\n", 6, Int32(MSG_NOSIGNAL)) }
        return greeted
    }

    private static func loopback(_ port: Int) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(UInt16(clamping: port)).bigEndian
        address.sin_addr.s_addr = in_addr_t(0x7f00_0001).bigEndian
        return address
    }
}
