// The admin API's bearer token: made once, kept in the data directory, compared in constant time.
import BatonCore
import BatonRuntime
import CBatonSystem
import Glibc

/// 32 random octets in hexadecimal. Prints as `***`.
package struct AdminToken: Sendable, CustomStringConvertible, CustomReflectable {
    private let bytes: [UInt8]

    /// The file's name in the data directory.
    package static let fileName = "admin.token"

    /// Nil for fewer than 16 or more than 256 octets, or anything but visible ASCII; white space around it is dropped.
    package init?(_ text: some Sequence<UInt8>) {
        let blank: Set<UInt8> = [0x20, 0x09, 0x0d, 0x0a]
        let all = Array(text)
        let start = all.firstIndex { !blank.contains($0) } ?? all.endIndex
        let end = all.lastIndex { !blank.contains($0) }.map { $0 + 1 } ?? all.endIndex
        guard start < end else { return nil }
        let kept = Array(all[start..<end])
        guard (16...256).contains(kept.count), kept.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else { return nil }
        self.bytes = kept
    }

    /// Fresh from the kernel.
    package static func random() -> AdminToken? {
        var raw = [UInt8](repeating: 0, count: 32)
        raw.withUnsafeMutableBytes { baton_random($0.baseAddress, $0.count) }
        let digits = Array("0123456789abcdef".utf8)
        return AdminToken(raw.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
    }

    /// Takes the same time whatever the first difference is; the length may show.
    package func matches(_ other: some Collection<UInt8>) -> Bool {
        var difference = UInt8(bytes.count == other.count ? 0 : 1)
        for (mine, given) in zip(bytes, other) { difference |= mine ^ given }
        return difference == 0
    }

    /// What goes behind `Bearer `.
    package var header: String { String(decoding: bytes, as: UTF8.self) }

    package var description: String { "***" }
    package var customMirror: Mirror { Mirror(self, children: []) }

    // MARK: The file

    package enum FileError: Error, CustomStringConvertible {
        case system(path: String, errno: Int32)
        /// Others may read it.
        case exposed(path: String)
        case malformed(path: String)

        package var description: String {
            switch self {
            case .system(let path, let number): "\(path): \(SystemText.error(number))"
            case .exposed(let path): "\(path): readable by others; chmod 600 it"
            case .malformed(let path): "\(path): holds no token (16 to 256 visible characters)"
            }
        }
    }

    /// Reads a token file. Blocking. Refuses one that others may read unless `anyMode`.
    package static func read(_ path: String, anyMode: Bool = false) throws(FileError) -> AdminToken {
        let descriptor = baton_open(path, O_RDONLY, 0)
        guard descriptor >= 0 else { throw .system(path: path, errno: -descriptor) }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw .system(path: path, errno: errno) }
        if !anyMode, status.st_mode & 0o077 != 0 { throw .exposed(path: path) }
        var buffer = [UInt8](repeating: 0, count: 1024)
        let count = buffer.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, $0.count) }
        guard count >= 0 else { throw .system(path: path, errno: errno) }
        guard let token = AdminToken(buffer[..<count]) else { throw .malformed(path: path) }
        return token
    }

    /// The token of a data directory, made at the first start (0600, fsync'ed under another name, then renamed, so that a
    /// crash leaves no half a token). Blocking; the caller holds the directory's lock.
    package static func openOrCreate(dataDirectory: String) throws(FileError) -> AdminToken {
        let path = dataDirectory + "/" + fileName
        if access(path, F_OK) == 0 { return try read(path) }
        guard let token = random() else { throw .malformed(path: path) }
        let temporary = path + ".new"
        unlink(temporary)
        let descriptor = baton_open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0o600)
        guard descriptor >= 0 else { throw .system(path: temporary, errno: -descriptor) }
        defer { close(descriptor) }
        let line = token.bytes + [0x0a]
        let written = line.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
        guard written == line.count else { throw .system(path: temporary, errno: written < 0 ? errno : ENOSPC) }
        guard fsync(descriptor) == 0, rename(temporary, path) == 0 else { throw .system(path: path, errno: errno) }
        do {
            try LinuxDisk().syncDirectory(dataDirectory)
        } catch { throw .system(path: dataDirectory, errno: error.errno) }
        return token
    }
}
