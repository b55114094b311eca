// Frames against golden bytes, cut anywhere, and damaged in every way.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonPeer

private func unhex(_ text: String) -> [UInt8] {
    var octets: [UInt8] = []
    var high: UInt8?
    for digit in text.utf8.compactMap({ Character(Unicode.Scalar($0)).hexDigitValue }) {
        if let first = high {
            octets.append(first << 4 | UInt8(digit))
            high = nil
        } else {
            high = UInt8(digit)
        }
    }
    return octets
}

/// What a decoder makes of pieces: the messages, then what it threw.
struct Decoded: Equatable {
    var messages: [PeerMessage] = []
    var violation: PeerViolation?
    var isMidFrame = false
}

func decode(_ pieces: [[UInt8]]) -> Decoded {
    var decoder = FrameDecoder()
    var decoded = Decoded()
    for piece in pieces {
        decoder.feed(ByteBuffer(bytes: piece))
        do throws(PeerViolation) {
            var waits = false
            while !waits {
                switch try decoder.next() {
                case .needMore: waits = true
                case .header: break
                case .frame(let frame): decoded.messages.append(try PeerMessage(reading: frame))
                }
            }
        } catch {
            decoded.violation = error
            return decoded
        }
    }
    decoded.isMidFrame = decoder.isMidFrame
    return decoded
}

func encoded(_ message: PeerMessage) throws -> [UInt8] {
    Array(try #require(EncodedFrame(message), "\(message) cannot be sent").joined.readableBytesView)
}

/// Sets the CRC of a single frame right again after it was changed.
func resealed(_ octets: [UInt8]) -> [UInt8] {
    guard octets.count >= 12, let type = FrameType(rawValue: octets[4]) else { return octets }
    let payload = octets[12...]
    let covered = payload.prefix(type.coveredOctets ?? payload.count)
    let crc = CRC32C.of(Array(octets[..<8]) + covered)
    var sealed = octets
    for index in 0..<4 { sealed[8 + index] = UInt8(truncatingIfNeeded: crc >> (8 * UInt32(index))) }
    return sealed
}

@Test func frameTypeWithoutASample() {
    #expect(sampleMessages.map(\.type) == FrameType.allCases)
    #expect(Set(goldenFrames.keys) == Set(FrameType.allCases.map { "\($0)" }))
}

@Test(arguments: FrameType.allCases)
func frameDiffersFromItsGoldenBytes(_ type: FrameType) throws {
    let message = try #require(sampleMessages.first { $0.type == type })
    let golden = unhex(try #require(goldenFrames["\(type)"]))
    #expect(try encoded(message) == golden)
    #expect(decode([golden]) == Decoded(messages: [message]))
}

@Test(arguments: FrameType.allCases)
func randomMessageChangesOnItsWay(_ type: FrameType) throws {
    let seed = UInt64(type.rawValue) &* 7919
    var random = RandomMessages(seed: seed)
    for round in 0..<200 {
        let message = random.message(type)
        #expect(decode([try encoded(message)]) == Decoded(messages: [message]), "seed \(seed), round \(round)")
    }
}

@Test func streamCutAtAnyOctetMeansSomethingElse() throws {
    let stream = try sampleMessages.flatMap { try encoded($0) }
    let whole = Decoded(messages: sampleMessages)
    #expect(decode([stream]) == whole)
    #expect(decode(stream.map { [$0] }) == whole)
    for cut in 1..<stream.count {
        #expect(decode([Array(stream[..<cut]), Array(stream[cut...])]) == whole, "cut at \(cut)")
    }
}

@Test func streamThatEndsWithinAFrameLooksComplete() throws {
    for message in sampleMessages {
        let octets = try encoded(message)
        for length in 1..<octets.count {
            #expect(decode([Array(octets[..<length])]) == Decoded(isMidFrame: true), "\(message.type), \(length)")
        }
    }
}

@Test func anyBitOfACheckedFrameFlipsUnnoticed() throws {
    var unnoticed: [String] = []
    for message in sampleMessages {
        let octets = try encoded(message)
        let checked = 12 + (message.type.coveredOctets ?? octets.count - 12)
        for index in 0..<checked {
            for bit in 0..<8 {
                var flipped = octets
                flipped[index] ^= 1 << UInt8(bit)
                let decoded = decode([flipped])
                // A length that grew waits for octets that never come; everything else is refused.
                let isNoticed = decoded.violation != nil || (index < 4 && decoded.isMidFrame)
                if !decoded.messages.isEmpty || !isNoticed {
                    unnoticed.append("\(message.type), octet \(index), bit \(bit)")
                }
            }
        }
    }
    #expect(unnoticed.isEmpty)
}

@Test func chunkOctetsAreSummedTwice() throws {
    for message in sampleMessages where message.type == .append || message.type == .chunk {
        var octets = try encoded(message)
        octets[octets.count - 1] ^= 0xff
        let decoded = decode([octets])
        #expect(decoded.violation == nil && decoded.messages.count == 1 && decoded.messages != [message])
    }
}

@Test func lengthBeyondItsTypeIsWaitedFor() throws {
    for type in FrameType.allCases {
        let lengths = type.payloadLengths
        for (length, violation) in [
            (lengths.upperBound + 1, PeerViolation.oversized), (Int(UInt32.max), .oversized),
            (lengths.lowerBound - 1, .undersized),
        ] {
            var head = ByteBuffer()
            head.writeMultipleIntegers(
                UInt32(length), type.rawValue, UInt8(0), UInt16(0), UInt32(0), endianness: .little)
            #expect(decode([Array(head.readableBytesView)]) == Decoded(violation: violation), "\(type) of \(length)")
        }
    }
}

@Test func unknownTypeOrReservedBitIsTaken() throws {
    for type in UInt8.min...UInt8.max where FrameType(rawValue: type) == nil {
        #expect(decode([[0, 0, 0, 0, type, 0, 0, 0, 0, 0, 0, 0]]) == Decoded(violation: .unknownType))
    }
    for message in sampleMessages {
        let octets = try encoded(message)
        for (index, bits) in [(5, 8), (6, 8), (7, 8)] {
            for bit in 0..<bits {
                if index == 5, message.type.legalFlags.rawValue & (1 << UInt8(bit)) != 0 { continue }
                var changed = octets
                changed[index] |= 1 << UInt8(bit)
                #expect(decode([resealed(changed)]).violation == .reservedBits, "\(message.type), \(index), \(bit)")
            }
        }
    }
}

@Test func garbageIsTakenForFrames() {
    #expect(decode([Array("GET / HTTP/1.1\r\nHost: a\r\n\r\n".utf8)]).violation != nil)
    #expect(decode([Array("EHLO client.example\r\n".utf8)]).violation != nil)
    #expect(decode([[UInt8](repeating: 0, count: 64)]).violation == .unknownType)
    #expect(decode([[UInt8](repeating: 0xff, count: 64)]).violation == .unknownType)
    #expect(decode([[0x16, 3, 1, 0, 0xfd, 1, 0, 0, 0xf9, 3, 3, 0, 0]]).violation != nil)
}

@Test func strangersHelloIsNotToldApart() throws {
    var octets = try encoded(sampleMessages[0])
    octets[12] = UInt8(ascii: "X")
    #expect(decode([resealed(octets)]).violation == .notBaton)
}

@Test func laterVersionsHelloIsRefused() throws {
    var octets = try encoded(sampleMessages[0])
    octets += [1, 2, 3]
    octets[0] += 3
    #expect(decode([resealed(octets)]) == Decoded(messages: [sampleMessages[0]]))
}

/// Every octet of every type, given the values that are none or many, with the checksum set right: nothing traps, and what is read is written
/// back as it was.
@Test func fieldOfAnyValueTrapsOrChanges() throws {
    var wrong: [String] = []
    for message in sampleMessages where message.type != .hello {
        let octets = try encoded(message)
        for index in 12..<octets.count {
            for value in Array(UInt8(0)...16) + [0x7f, 0x80, 0xfe, 0xff] {
                var changed = octets
                changed[index] = value
                let sealed = resealed(changed)
                let decoded = decode([sealed])
                let isRight: Bool
                if let read = decoded.messages.first {
                    isRight = EncodedFrame(read).map { Array($0.joined.readableBytesView) == sealed } ?? false
                } else {
                    isRight = decoded.violation == .malformed
                }
                if !isRight { wrong.append("\(message.type), octet \(index) = \(value): \(decoded)") }
            }
        }
    }
    #expect(wrong.isEmpty)
}

@Test func frameWithOctetsTooManyOrTooFewIsTaken() throws {
    for message in sampleMessages where message.type != .hello {
        let octets = try encoded(message)
        let lengths = message.type.payloadLengths
        for change in [-1, 1] {
            let length = octets.count - 12 + change
            guard lengths.contains(length) else { continue }
            var changed = change < 0 ? Array(octets.dropLast()) : octets + [0]
            changed[0] = UInt8(truncatingIfNeeded: length)
            changed[1] = UInt8(truncatingIfNeeded: length >> 8)
            let decoded = decode([resealed(changed)])
            switch message.type {
            // What ends with octets of any number is another message then.
            case .append, .chunk, .outcome, .query, .answer: #expect(decoded.messages != [message])
            default: #expect(decoded.violation == .malformed, "\(message.type) of \(length)")
            }
        }
    }
}
