// Fixed-size entries in malloc'ed pages: growth copies nothing and gives no ARC traffic.

/// Entries by 32-bit index. Pages stay until the pool goes, so memory is that of the fullest moment. Freed indices are reused
/// last in, first out. Not copyable: it owns its pages.
struct PagedPool<Element: BitwiseCopyable>: ~Copyable, @unchecked Sendable {
    // @unchecked: the pages belong to this value alone, which is not copyable; it is used by one executor at a time.
    private var pages: [UnsafeMutablePointer<Element>] = []
    private var free: [UInt32] = []
    /// Indices handed out so far, freed ones included: every valid index is below it.
    private(set) var highWater: UInt32 = 0

    private static var pageBits: UInt32 { 10 }
    static var pageCount: Int { 1 << Int(pageBits) }

    init() {}

    deinit {
        for page in pages { page.deallocate() }
    }

    var live: Int { Int(highWater) - free.count }

    /// Bytes of pages and of the free list.
    var bytes: Int {
        pages.count * Self.pageCount * MemoryLayout<Element>.stride + free.capacity * MemoryLayout<UInt32>.stride
    }

    /// A fresh index holding `initial` on first use; a reused entry keeps what it held, for the caller to overwrite.
    /// Traps when all 2^32 - 2 indices are in use: memory ends long before.
    mutating func take(_ initial: Element) -> UInt32 {
        if let index = free.popLast() { return index }
        precondition(highWater < UInt32.max - 1, "index space of the pool is used up")
        if Int(highWater) & (Self.pageCount - 1) == 0 {
            let page = UnsafeMutablePointer<Element>.allocate(capacity: Self.pageCount)
            page.initialize(repeating: initial, count: Self.pageCount)
            pages.append(page)
        }
        let index = highWater
        highWater += 1
        return index
    }

    mutating func give(back index: UInt32) { free.append(index) }

    /// `index` has been handed out: the caller checks what comes from outside against `highWater`.
    subscript(index: UInt32) -> Element {
        @inline(__always) unsafeAddress {
            UnsafePointer(pages[Int(index >> Self.pageBits)] + (Int(index) & (Self.pageCount - 1)))
        }
        @inline(__always) unsafeMutableAddress {
            pages[Int(index >> Self.pageBits)] + (Int(index) & (Self.pageCount - 1))
        }
    }
}
