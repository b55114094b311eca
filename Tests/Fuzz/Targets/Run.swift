// What all libFuzzer targets share: the octets go to the entry, and a finding ends the process.

/// Called by each target's `LLVMFuzzerTestOneInput`.
func run(_ name: String, _ data: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    guard let entry = fuzzEntries[name] else { fatalError("no entry \(name)") }
    do {
        try entry(Array(UnsafeBufferPointer(start: data, count: count)))
    } catch {
        fatalError("\(name): \(error)")
    }
    return 0
}
