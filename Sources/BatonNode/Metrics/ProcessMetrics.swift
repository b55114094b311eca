// What the process takes from the machine: memory, CPU, open files.
import CBatonSystem
import Foundation
import Glibc

package enum ProcessMetrics {
    /// Read at scrape time; a few system calls.
    package static func samples(startedAt: Double, version: String, nodeID: String) -> [MetricSample] {
        [
            .gauge("baton_process_resident_memory_bytes", Double(baton_resident_bytes())),
            .counter("baton_process_cpu_seconds_total", Double(baton_process_cpu_microseconds()) / 1e6),
            .gauge("baton_process_open_fds", Double(openFiles)),
            .gauge("baton_process_max_fds", Double(fileLimit)),
            .gauge("baton_process_start_time_seconds", startedAt),
            .gauge("baton_build_info", 1, [("version", version), ("node", nodeID)]),
        ]
    }

    /// Open file descriptors of this process; 0 if unknown.
    package static var openFiles: Int {
        guard let directory = opendir("/proc/self/fd") else { return 0 }
        defer { closedir(directory) }
        var count = 0
        while readdir(directory) != nil { count += 1 }
        // `.`, `..` and the directory itself.
        return max(0, count - 3)
    }

    /// The soft limit of open files, as it is.
    package static var fileLimit: UInt64 {
        var limit = rlimit()
        return getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0
            ? UInt64(limit.rlim_cur) : 0
    }
}
