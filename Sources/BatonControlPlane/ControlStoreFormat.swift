// The file of the local control plane, byte by byte.
import BatonCore

/// All integers little-endian:
/// ```
/// "BTNC" | u32 version 1 | u64 store id | i64 revision | u32 entries | u32 leases
/// entry: u16 key length | u32 value length | i64 created | i64 modified | i64 lease (0: none) | key | value
/// lease: i64 id | i64 ttl in nanoseconds
/// u32 CRC32C of all before it
/// ```
package enum ControlStoreFormat {
    /// Largest file that is read or written.
    package static let fileBytes = 64 * 1024 * 1024

    struct Content: Sendable {
        var id: UInt64
        var revision: ControlRevision
        var entries: [ControlEntry] = []
        var leases: [(id: ControlLeaseID, ttl: TimeSpan)] = []
    }

    static func encode(_ store: ControlStore) -> [UInt8] {
        var bytes = Array("BTNC".utf8)
        append(UInt32(1), to: &bytes)
        append(store.id, to: &bytes)
        append(store.revision, to: &bytes)
        append(UInt32(store.entries.count), to: &bytes)
        append(UInt32(store.leases.count), to: &bytes)
        for entry in store.entries.values.sorted(by: { $0.key < $1.key }) {
            append(UInt16(entry.key.bytes.count), to: &bytes)
            append(UInt32(entry.value.count), to: &bytes)
            append(entry.created, to: &bytes)
            append(entry.modified, to: &bytes)
            append(entry.lease?.value ?? 0, to: &bytes)
            bytes += entry.key.bytes
            bytes += entry.value
        }
        for (id, lease) in store.leases.sorted(by: { $0.key.value < $1.key.value }) {
            append(id.value, to: &bytes)
            append(lease.ttl.nanoseconds, to: &bytes)
        }
        append(CRC32C.of(bytes), to: &bytes)
        return bytes
    }

    private static func append(_ value: some FixedWidthInteger, to bytes: inout [UInt8]) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    /// Nil for anything but what `encode` makes.
    static func decode(_ bytes: [UInt8]) -> Content? {
        guard bytes.count >= 4 else { return nil }
        var tail = Reader(bytes: bytes[(bytes.count - 4)...])
        let payload = bytes[..<(bytes.count - 4)]
        guard tail.integer(UInt32.self) == CRC32C.of(Array(payload)) else { return nil }
        var reader = Reader(bytes: payload)
        guard reader.take(4).map(Array.init) == Array("BTNC".utf8), reader.integer(UInt32.self) == 1,
            let id = reader.integer(UInt64.self), let revision = reader.integer(Int64.self), revision > 0,
            let entries = reader.integer(UInt32.self), let leases = reader.integer(UInt32.self),
            entries <= ControlLimits.listing, leases <= ControlLimits.leases
        else { return nil }
        var content = Content(id: id, revision: revision)
        for _ in 0..<entries {
            guard let keyLength = reader.integer(UInt16.self), let valueLength = reader.integer(UInt32.self),
                let created = reader.integer(Int64.self), let modified = reader.integer(Int64.self),
                let lease = reader.integer(Int64.self), valueLength <= ControlLimits.valueBytes,
                created > 0, modified >= created, modified <= revision,
                let key = reader.take(Int(keyLength)), let value = reader.take(Int(valueLength))
            else { return nil }
            let name = ControlKey(bytes: Array(key))
            guard ControlLimits.allows(name) else { return nil }
            content.entries.append(
                ControlEntry(
                    key: name, value: Array(value), created: created, modified: modified,
                    lease: lease == 0 ? nil : ControlLeaseID(value: lease)))
        }
        for _ in 0..<leases {
            guard let id = reader.integer(Int64.self), id != 0, let ttl = reader.integer(Int64.self), ttl > 0
            else { return nil }
            content.leases.append((ControlLeaseID(value: id), TimeSpan(nanoseconds: ttl)))
        }
        return reader.bytes.isEmpty ? content : nil
    }

    private struct Reader {
        var bytes: ArraySlice<UInt8>

        mutating func take(_ count: Int) -> ArraySlice<UInt8>? {
            guard bytes.count >= count else { return nil }
            defer { bytes = bytes.dropFirst(count) }
            return bytes.prefix(count)
        }

        mutating func integer<Value: FixedWidthInteger>(_ type: Value.Type) -> Value? {
            guard let taken = take(MemoryLayout<Value>.size) else { return nil }
            var value: Value = 0
            withUnsafeMutableBytes(of: &value) { $0.copyBytes(from: taken) }
            return Value(littleEndian: value)
        }
    }
}
