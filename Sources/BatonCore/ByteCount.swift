// Sizes as people write them.

package enum ByteCount {
    package static let kibi = 1024
    package static let mebi = 1024 * 1024
    package static let gibi = 1024 * 1024 * 1024

    /// `1.5 MiB` and the like, for people.
    package static func text(_ bytes: Int) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB"]
        var value = Double(bytes)
        var unit = 0
        while value >= 1024, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        if unit == 0 { return "\(bytes) B" }
        let tenths = Int((value * 10).rounded())
        return "\(tenths / 10).\(tenths % 10) \(units[unit])"
    }
}
