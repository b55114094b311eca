// DATA and BDAT of the server session: octets into the body, limits, the verdict's beginning.
import BatonCore
import BatonModel
import NIOCore

extension ServerSession {
    mutating func beginBody(_ kind: DataFraming.Kind, at now: Instant) {
        id = ids.next(at: now)
        framing = DataFraming(kind, normalizesBareLF: settings.normalizesBareLF)
        body.begin(expected: draft.parameters.size, hostname: settings.hostname)
        failure = nil
        streamOpened = false
        bodyStartedAt = now
        bodyOctets = 0
        resetDataDeadline(at: now)
    }

    /// The earlier of stall and minimum rate: at `bodyStartedAt + octets / rate` the average falls below the minimum.
    mutating func resetDataDeadline(at now: Instant) {
        let byRate = TimeSpan.seconds(Int64(clamping: bodyOctets / ServerSettings.bytesPerSecondMin))
        let slowest = bodyStartedAt + max(ServerSettings.rateGrace, byRate)
        deadline = min(now + settings.limits.dataTimeout, slowest)
    }

    mutating func readData(_ input: inout ByteBuffer, at now: Instant, _ output: inout ServerOutput) -> Bool {
        guard input.readableBytes > 0 else { return false }
        let (used, ended) = input.withUnsafeReadableBytes { framing.receive($0, into: &body) }
        input.moveReaderIndex(forwardBy: used)
        bodyOctets += used
        resetDataDeadline(at: now)
        judgeBody(&output)
        if ended {
            finishBody(at: now, &output)
        } else if failure != nil, bodyOctets > settings.drainMax {
            endRefusedBody(at: now, &output)
        }
        return true
    }

    mutating func readChunk(_ input: inout ByteBuffer, at now: Instant, _ output: inout ServerOutput) -> Bool {
        let count = min(input.readableBytes, chunkRemaining)
        guard count > 0 else { return false }
        if chunkRefusal == nil {
            input.withUnsafeReadableBytes { raw in
                _ = framing.receive(UnsafeRawBufferPointer(rebasing: raw[..<count]), into: &body)
            }
        }
        input.moveReaderIndex(forwardBy: count)
        chunkRemaining -= count
        bodyOctets += count
        resetDataDeadline(at: now)
        if chunkRefusal == nil { judgeBody(&output) }
        if chunkRemaining == 0 { finishChunk(at: now, &output) }
        return true
    }

    /// All octets of the BDAT command are in.
    mutating func finishChunk(at now: Instant, _ output: inout ServerOutput) {
        deadline = now + settings.limits.commandTimeout
        if let refusal = chunkRefusal {
            chunkRefusal = nil
            state = stateBeforeChunk
            answer(refusal, &output)
        } else if chunkIsLast {
            framing.finish()
            judgeBody(&output)
            finishBody(at: now, &output)
        } else if let failure {
            // The transaction is over: a chunk that was pipelined behind this one is answered 503 (RFC 3030 2).
            refuseMessage(failure, at: now, &output)
        } else {
            state = .betweenChunks
            output.replies.writeStaticString("250 2.0.0 ")
            writeDecimal(chunkSize, &output.replies)
            output.replies.writeStaticString(" octets received\r\n")
        }
        if isStopping, state == .ready || state == .transaction { end(.shuttingDown, &output) }
    }

    /// Looks for reasons to refuse after octets were added, and hands pieces of a large body on.
    private mutating func judgeBody(_ output: inout ServerOutput) {
        guard failure == nil else { return }
        let limits = settings.limits
        if let violation = framing.violation {
            fail(.framing(violation), &output)
        } else if body.headerTooLong {
            fail(.headerTooLong, &output)
        } else if body.contentLength > limits.messageSize {
            fail(.tooBig, &output)
        } else if framing.longestLine > limits.lineLength {
            fail(.lineTooLong, &output)
        } else if body.header.received > limits.hops || body.header.own > HeaderWatch.ownMax {
            fail(.tooManyHops, &output)
        } else {
            for piece in body.takePieces() {
                if streamOpened {
                    output.actions.append(.fragment(piece))
                } else {
                    streamOpened = true
                    output.actions.append(.openStream(message(piece)))
                }
            }
        }
    }

    mutating func fail(_ reason: BodyFailure, _ output: inout ServerOutput) {
        guard failure == nil else { return }
        failure = reason
        body.discard()
        if streamOpened { output.actions.append(.abandonStream) }
        streamOpened = false
    }

    /// The end of data: to the spool, or the refusal.
    private mutating func finishBody(at now: Instant, _ output: inout ServerOutput) {
        if let failure {
            refuseMessage(failure, at: now, &output)
            if isStopping, state != .closed { end(.shuttingDown, &output) }
            return
        }
        let message: ReceivedMessage
        if body.isStreamed {
            message = self.message(body.takeRest())
        } else {
            message = self.message(ByteBuffer())
            content = body.takeRest()
        }
        body.discard()
        streamOpened = false
        state = .awaitingVerdict
        deadline = .distantFuture
        output.actions.append(.submit(message))
    }

    private mutating func refuseMessage(_ reason: BodyFailure, at now: Instant, _ output: inout ServerOutput) {
        let reply = reason.reply
        noteRejection(reply, stage: .finalDot, recipient: nil, at: now, &output)
        resetTransaction(&output)
        deadline = now + settings.limits.commandTimeout
        if case .storage(.stopping) = reason {
            end(reply, &output)
        } else {
            answer(reply, &output)
        }
    }

    /// A refused message does not end: its reply, then the end.
    private mutating func endRefusedBody(at now: Instant, _ output: inout ServerOutput) {
        let reply = failure?.reply ?? .tooBig
        noteRejection(reply, stage: .finalDot, recipient: nil, at: now, &output)
        end(reply, &output)
    }

    private func message(_ piece: ByteBuffer) -> ReceivedMessage {
        let traits = BodyTraits(
            length: body.contentLength, crc32c: 0, headerLength: body.header.length ?? body.contentLength,
            leadingDots: framing.leadingDots, longestLine: framing.longestLine, hasEightBitBody: body.hasEightBitBody,
            hasEightBitHeader: body.hasEightBitHeader, endsWithCRLF: framing.endsWithCRLF)
        return ReceivedMessage(
            id: id, helo: helo, isExtended: isExtended, sender: draft.sender, parameters: draft.parameters,
            recipients: draft.recipients, header: body.header, traits: traits, piece: piece,
            isStreamed: body.isStreamed, startedAt: bodyStartedAt)
    }

    private func writeDecimal(_ value: Int, _ buffer: inout ByteBuffer) {
        var divisor = 1
        while value / divisor >= 10 { divisor *= 10 }
        while divisor > 0 {
            buffer.writeInteger(UInt8(truncatingIfNeeded: 0x30 + value / divisor % 10))
            divisor /= 10
        }
    }
}
