// The libFuzzer target "peer": its entry, under the name that libFuzzer calls.

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOne(_ data: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    run("peer", data, count)
}
