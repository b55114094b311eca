// A receiving server that does as its script says: for tests of the delivery side.
import NIOCore
import NIOPosix
import Synchronization

/// A receiver on its own loop. Its script is asked before each answer; nil means that a decent server's answer is given.
package final class FakeMX: Sendable {
    /// What the script may answer.
    package enum Answer: Sendable {
        /// Lines without CRLF at the end.
        case say(String)
        case sayAndClose(String)
        case close
        /// Nothing at all.
        case silence
    }

    /// `command`: the line received, or `(connect)`, or `(dot)` once a message is there. `connection` counts from 0.
    package typealias Script = @Sendable (_ connection: Int, _ command: String) -> Answer?

    package struct Received: Sendable {
        package let connection: Int
        package let mail: String
        package let recipients: [String]
        /// As on the wire but un-stuffed, without the final dot.
        package let body: [UInt8]
    }

    package struct Record: Sendable {
        package var connections = 0
        package var open = 0
        package var openMost = 0
        package var commands: [String] = []
        package var messages: [Received] = []
    }

    private let box = RecordBox()
    private let channel: any Channel
    package let port: Int

    package var record: Record { box.shared.withLock { $0 } }

    /// Listens on `address` (port 0: any) or on a Unix socket. `offers` are its EHLO keywords.
    package init(
        group: any EventLoopGroup, address: String = "127.0.0.1", port: Int = 0, socket: String? = nil,
        offers: [String] = ["PIPELINING", "8BITMIME", "SIZE", "DSN", "ENHANCEDSTATUSCODES"], isLMTP: Bool = false,
        script: @escaping Script = { _, _ in nil }
    ) async throws {
        let box = box
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: 256)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let handler = FakeMXHandler(box: box, offers: offers, isLMTP: isLMTP, script: script)
                    try channel.pipeline.syncOperations.addHandler(handler)
                }
            }
        if let socket {
            channel = try await bootstrap.bind(unixDomainSocketPath: socket, cleanupExistingSocketFile: true).get()
        } else {
            channel = try await bootstrap.bind(host: address, port: port).get()
        }
        self.port = channel.localAddress?.port ?? 0
    }

    package func stop() async { try? await channel.close().get() }

    fileprivate final class RecordBox: Sendable {
        let shared = Mutex(Record())
        func note(_ change: (inout Record) -> Void) { shared.withLock { change(&$0) } }
    }
}

private final class FakeMXHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let box: FakeMX.RecordBox
    private let offers: [String]
    private let isLMTP: Bool
    private let script: FakeMX.Script
    private var number = 0
    private var inbound = ByteBuffer()
    private var mail = ""
    private var recipients: [String] = []
    private var body: [UInt8] = []
    private var inData = false
    private var chunkLeft = 0
    private var chunkIsLast = false
    private var inChunk = false
    private var isClosing = false

    init(box: FakeMX.RecordBox, offers: [String], isLMTP: Bool, script: @escaping FakeMX.Script) {
        self.box = box
        self.offers = offers
        self.isLMTP = isLMTP
        self.script = script
    }

    func channelActive(context: ChannelHandlerContext) {
        number = box.shared.withLock { record in
            record.connections += 1
            record.open += 1
            record.openMost = max(record.openMost, record.open)
            return record.connections - 1
        }
        answer("(connect)", "220 fake.mx ESMTP", context)
    }

    func channelInactive(context: ChannelHandlerContext) { box.note { $0.open -= 1 } }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var bytes = unwrapInboundIn(data)
        inbound.writeBuffer(&bytes)
        while !isClosing {
            if inChunk {
                let taken = inbound.readBytes(length: min(chunkLeft, inbound.readableBytes)) ?? []
                body += taken
                chunkLeft -= taken.count
                guard chunkLeft == 0 else { return }
                inChunk = false
                if chunkIsLast { finish(context) } else { answer("(chunk)", "250 ok", context) }
                continue
            }
            guard let line = readLine() else { return }
            if inData { receiveData(line, context) } else { receive(line, context) }
        }
    }

    private func readLine() -> [UInt8]? {
        guard let end = inbound.readableBytesView.firstIndex(of: 0x0a) else { return nil }
        return inbound.readBytes(length: end - inbound.readerIndex + 1)
    }

    private func receiveData(_ line: [UInt8], _ context: ChannelHandlerContext) {
        if line == Array(".\r\n".utf8) {
            inData = false
            return finish(context)
        }
        body += line.first == UInt8(ascii: ".") ? Array(line.dropFirst()) : line
    }

    private func finish(_ context: ChannelHandlerContext) {
        let received = FakeMX.Received(connection: number, mail: mail, recipients: recipients, body: body)
        box.note { $0.messages.append(received) }
        let count = isLMTP ? recipients.count : 1
        mail = ""
        recipients = []
        body = []
        for index in 0..<count where !isClosing { answer("(dot)", "250 2.0.0 taken \(index)", context) }
    }

    private func receive(_ line: [UInt8], _ context: ChannelHandlerContext) {
        var command = String(decoding: line, as: UTF8.self)
        // CRLF is one Character.
        if command.last?.isNewline == true { command.removeLast() }
        let noted = command
        box.note { $0.commands.append(noted) }
        let verb = command.prefix { $0 != " " && $0 != ":" }.uppercased()
        switch verb {
        case "EHLO", "LHLO":
            let lines = ["fake.mx"] + offers
            let text = lines.enumerated().map { "250\($0.offset == lines.count - 1 ? " " : "-")\($0.element)" }
            answer(command, text.joined(separator: "\r\n"), context)
        case "HELO": answer(command, "250 fake.mx", context)
        case "MAIL":
            mail = command
            recipients = []
            answer(command, "250 2.1.0 ok", context)
        case "RCPT": if answer(command, "250 2.1.5 ok", context) { recipients.append(command) }
        case "DATA":
            if recipients.isEmpty {
                answer(command, "503 5.5.1 no recipients", context)
            } else {
                inData = answer(command, "354 go", context)
            }
        case "BDAT":
            let words = command.split(separator: " ")
            chunkLeft = words.count > 1 ? Int(words[1]) ?? 0 : 0
            chunkIsLast = words.count > 2
            inChunk = true
        case "RSET":
            mail = ""
            recipients = []
            answer(command, "250 2.0.0 ok", context)
        case "QUIT":
            answer(command, "221 2.0.0 bye", context)
            context.close(promise: nil)
        default: answer(command, "500 5.5.2 what", context)
        }
    }

    /// Whether the answer was a positive one.
    @discardableResult
    private func answer(_ command: String, _ usual: String, _ context: ChannelHandlerContext) -> Bool {
        var text = usual
        switch script(number, command) {
        case nil: break
        case .say(let said): text = said
        case .sayAndClose(let said):
            say(said, context)
            isClosing = true
            context.close(promise: nil)
            return false
        case .close:
            isClosing = true
            context.close(promise: nil)
            return false
        case .silence: return false
        }
        say(text, context)
        return text.hasPrefix("2") || text.hasPrefix("3")
    }

    private func say(_ text: String, _ context: ChannelHandlerContext) {
        context.writeAndFlush(wrapOutboundOut(ByteBuffer(string: text + "\r\n")), promise: nil)
    }
}
