// Calendar dates as mail and logs write them, without Foundation.
import BatonCore
import NIOCore

/// A point in time broken into UTC calendar fields (proleptic Gregorian, no leap seconds).
package struct CalendarTime: Hashable, Sendable {
    package let year: Int
    /// 1 to 12.
    package let month: Int
    /// 1 to 31.
    package let day: Int
    package let hour: Int
    package let minute: Int
    package let second: Int
    /// 0 is Sunday.
    package let weekday: Int

    /// Every `Instant` has a date: its 64 bits of nanoseconds reach from 1677 to 2262.
    package init(_ instant: Instant) {
        let seconds = instant.secondsSinceEpoch
        var days = seconds / 86_400
        var rest = seconds % 86_400
        if rest < 0 {
            rest += 86_400
            days -= 1
        }
        // Civil from days (H. Hinnant): eras of 400 years that begin on 1 March.
        let shifted = days + 719_468
        let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let monthFromMarch = (5 * dayOfYear + 2) / 153
        self.day = Int(dayOfYear - (153 * monthFromMarch + 2) / 5 + 1)
        self.month = Int(monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9)
        self.year = Int(yearOfEra + era * 400) + (month <= 2 ? 1 : 0)
        self.hour = Int(rest / 3_600)
        self.minute = Int(rest % 3_600 / 60)
        self.second = Int(rest % 60)
        self.weekday = Int(((days + 4) % 7 + 7) % 7)
    }
}

/// `Tue, 24 Nov 2026 00:03:06 +0000` (RFC 5322 3.3), always in UTC.
package enum MailDate {
    /// Octets of every date written here.
    package static let length = 31

    private static let weekdays: StaticString = "SunMonTueWedThuFriSat"
    private static let months: StaticString = "JanFebMarAprMayJunJulAugSepOctNovDec"

    /// Appends the 31 octets, without a line end.
    package static func write(_ instant: Instant, into buffer: inout ByteBuffer) {
        let time = CalendarTime(instant)
        buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: length) { raw in
            var at = 0
            func put(_ byte: UInt8) {
                raw[at] = byte
                at += 1
            }
            func name(_ table: StaticString, _ index: Int) {
                for offset in 0..<3 { put(table.utf8Start[index * 3 + offset]) }
            }
            func two(_ value: Int) {
                put(UInt8(truncatingIfNeeded: 0x30 + value / 10))
                put(UInt8(truncatingIfNeeded: 0x30 + value % 10))
            }
            name(weekdays, time.weekday)
            put(UInt8(ascii: ","))
            put(0x20)
            two(time.day)
            put(0x20)
            name(months, time.month - 1)
            put(0x20)
            two(time.year / 100)
            two(time.year % 100)
            put(0x20)
            two(time.hour)
            put(UInt8(ascii: ":"))
            two(time.minute)
            put(UInt8(ascii: ":"))
            two(time.second)
            put(0x20)
            put(UInt8(ascii: "+"))
            for _ in 0..<4 { put(UInt8(ascii: "0")) }
            return at
        }
    }

    /// The same as octets, for what is written rarely.
    package static func bytes(_ instant: Instant) -> [UInt8] {
        var buffer = ByteBuffer()
        write(instant, into: &buffer)
        return Array(buffer.readableBytesView)
    }
}
