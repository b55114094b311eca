// One request on its way: a curl easy handle and what it has received. Lives on its thread alone.
import BatonCore
import CCurl
import Glibc

/// Who hears of a transfer.
enum TransferReceiver: Sendable {
    case whole(@Sendable (Result<HTTPResponse, HTTPError>) -> Void)
    case stream(@Sendable (HTTPStreamEvent) -> Void)
}

/// Owned by `CurlWorker`, created and used on its thread only; curl's callbacks come on that thread too.
final class CurlTransfer {
    let id: HTTPTransferID
    let handle: UnsafeMutableRawPointer
    private let request: HTTPRequest
    private let receiver: TransferReceiver
    private let now: () -> Instant
    private let began: Instant
    private var lastActivity: Instant
    private var answering = false
    private var headerList: UnsafeMutablePointer<curl_slist>?
    private let errorText = UnsafeMutablePointer<CChar>.allocate(capacity: Int(CURL_ERROR_SIZE))
    private var sent = 0
    private var received = 0
    private var headerBytes = 0
    private var headers: [HTTPHeader] = []
    private var body: [UInt8] = []
    private var tooLarge = false
    private var headShown = false

    /// Nil where curl has no memory for a handle.
    init?(_ id: HTTPTransferID, _ request: HTTPRequest, _ receiver: TransferReceiver, now: @escaping () -> Instant) {
        guard let handle = curl_easy_init() else { return nil }
        self.id = id
        self.handle = handle
        self.request = request
        self.receiver = receiver
        self.now = now
        self.began = now()
        self.lastActivity = began
        errorText.initialize(repeating: 0, count: Int(CURL_ERROR_SIZE))
    }

    deinit {
        curl_easy_cleanup(handle)
        curl_slist_free_all(headerList)
        errorText.deallocate()
    }

    // MARK: Setting up

    /// What is wrong with the request, if anything.
    func prepare() -> String? {
        let lower = request.url.prefix(8).lowercased()
        guard lower.hasPrefix("http://") || lower.hasPrefix("https://"), Self.isOneLine(request.url),
            !request.url.utf8.contains(0x20)
        else { return "not an http URL" }
        var ok = setString(CURLOPT_URL, request.url)
        ok = setString(CURLOPT_PROTOCOLS_STR, "http,https") && ok
        ok = setString(CURLOPT_PROXY, "") && ok
        ok = setLong(CURLOPT_NOSIGNAL, 1) && ok
        ok = setLong(CURLOPT_FOLLOWLOCATION, 0) && ok
        ok = setLong(CURLOPT_HTTP_VERSION, Int(CURL_HTTP_VERSION_1_1)) && ok
        ok = setLong(CURLOPT_TCP_KEEPALIVE, 1) && setLong(CURLOPT_TCP_KEEPIDLE, 15) && ok
        ok = setLong(CURLOPT_TCP_KEEPINTVL, 5) && ok
        ok = setMilliseconds(CURLOPT_CONNECTTIMEOUT_MS, request.timeouts.connect) && ok
        ok = setMilliseconds(CURLOPT_TIMEOUT_MS, request.timeouts.total) && ok
        ok = setLong(CURLOPT_SSL_VERIFYPEER, 1) && setLong(CURLOPT_SSL_VERIFYHOST, 2) && ok
        ok = setLong(CURLOPT_SSLVERSION, Int(CURL_SSLVERSION_TLSv1_2)) && ok
        let files = [
            (CURLOPT_CAINFO, request.tls.caFile), (CURLOPT_SSLCERT, request.tls.certificateFile),
            (CURLOPT_SSLKEY, request.tls.privateKeyFile),
        ]
        for case (let option, let path?) in files { ok = setString(option, path) && ok }
        if let credentials = request.credentials {
            ok = setLong(CURLOPT_HTTPAUTH, 1) && ok  // CURLAUTH_BASIC
            ok = setString(CURLOPT_USERNAME, credentials.user) && ok
            ok = setString(CURLOPT_PASSWORD, credentials.password) && ok
        }
        ok = setPointer(CURLOPT_ERRORBUFFER, errorText) && ok
        // Nothing to rewind would not stop curl from repeating a request without a body; a new connection does.
        if !request.isRepeatable, request.body.isEmpty { ok = setLong(CURLOPT_FRESH_CONNECT, 1) && ok }
        guard prepareHeaders() else { return "a header that cannot be sent" }
        ok = prepareBody() && prepareCallbacks() && ok
        return ok ? nil : "curl does not take an option"
    }

    private func prepareHeaders() -> Bool {
        var lines = request.headers.map { "\($0.name): \($0.value)" }
        // Without this curl waits a second for a 100 before it sends a larger body.
        lines.append("Expect:")
        for line in lines {
            guard Self.isOneLine(line), let grown = curl_slist_append(headerList, line) else { return false }
            headerList = grown
        }
        return setPointer(CURLOPT_HTTPHEADER, headerList)
    }

    private func prepareBody() -> Bool {
        switch request.method {
        case .get: return setLong(CURLOPT_HTTPGET, 1)
        case .post: break
        case .put, .delete:
            guard setString(CURLOPT_CUSTOMREQUEST, request.method.rawValue) else { return false }
        }
        guard setLong(CURLOPT_POST, 1),
            baton_curl_set_offset(handle, CURLOPT_POSTFIELDSIZE_LARGE, curl_off_t(request.body.count)) == CURLE_OK
        else { return false }
        if request.isRepeatable {
            return request.body.withUnsafeBytes { bytes in
                guard let base = bytes.baseAddress else { return setString(CURLOPT_COPYPOSTFIELDS, "") }
                return baton_curl_set_pointer(
                    handle, CURLOPT_COPYPOSTFIELDS, UnsafeMutableRawPointer(mutating: base)) == CURLE_OK
            }
        }
        // A body that curl pulls and cannot rewind is sent once: its own repetition on a fresh connection then fails.
        return baton_curl_set_function(handle, CURLOPT_READFUNCTION, curlTransferSends) == CURLE_OK
            && setPointer(CURLOPT_READDATA, Unmanaged.passUnretained(self).toOpaque())
    }

    private func prepareCallbacks() -> Bool {
        let me = Unmanaged.passUnretained(self).toOpaque()
        return baton_curl_set_function(handle, CURLOPT_WRITEFUNCTION, curlTransferReceives) == CURLE_OK
            && setPointer(CURLOPT_WRITEDATA, me)
            && baton_curl_set_function(handle, CURLOPT_HEADERFUNCTION, curlTransferReceivesHeader) == CURLE_OK
            && setPointer(CURLOPT_HEADERDATA, me)
    }

    private static func isOneLine(_ text: String) -> Bool { !text.utf8.contains { $0 < 0x20 && $0 != 0x09 } }

    private func setLong(_ option: CURLoption, _ value: Int) -> Bool {
        baton_curl_set_long(handle, option, value) == CURLE_OK
    }

    private func setString(_ option: CURLoption, _ value: String) -> Bool {
        baton_curl_set_string(handle, option, value) == CURLE_OK
    }

    private func setPointer(_ option: CURLoption, _ value: UnsafeMutableRawPointer?) -> Bool {
        baton_curl_set_pointer(handle, option, value) == CURLE_OK
    }

    /// At least a millisecond, since 0 would mean curl's default.
    private func setMilliseconds(_ option: CURLoption, _ span: TimeSpan) -> Bool {
        guard span > .zero else { return true }
        return setLong(option, Int(min(Int64(Int32.max), max(1, span.nanoseconds / 1_000_000))))
    }

    // MARK: Curl's callbacks

    fileprivate func send(into space: UnsafeMutableRawBufferPointer) -> Int {
        let count = min(space.count, request.body.count - sent)
        request.body.withUnsafeBytes { bytes in
            space.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[sent..<(sent + count)]))
        }
        sent += count
        return count
    }

    /// False ends the transfer.
    fileprivate func receive(header line: UnsafeRawBufferPointer) -> Bool {
        noteActivity()
        headerBytes += line.count
        guard headerBytes <= HTTPClientLimits.headerBytes else {
            tooLarge = true
            return false
        }
        guard case .whole = receiver else { return true }
        let text = String(decoding: line, as: UTF8.self)
        if text.hasPrefix("HTTP/") {
            // The head of an interim answer (1xx) is replaced by the final one's.
            headers.removeAll()
        } else if let colon = text.firstIndex(of: ":") {
            let value = text[text.index(after: colon)...].drop { $0.isWhitespace }
            let end = value.lastIndex { !$0.isWhitespace }.map { value.index(after: $0) } ?? value.startIndex
            headers.append(HTTPHeader(String(text[..<colon]), String(value[..<end])))
        }
        return true
    }

    fileprivate func receive(_ bytes: UnsafeRawBufferPointer) -> Bool {
        noteActivity()
        guard bytes.count <= request.responseBytesMax - received else {
            tooLarge = true
            return false
        }
        received += bytes.count
        switch receiver {
        case .whole: body.append(contentsOf: bytes)
        case .stream(let receive):
            showHead()
            receive(.bytes(Array(bytes)))
        }
        return true
    }

    private func noteActivity() {
        answering = true
        lastActivity = now()
    }

    private func showHead() {
        guard !headShown, case .stream(let receive) = receiver else { return }
        headShown = true
        receive(.head(status: status))
    }

    private var status: Int {
        var code = 0
        _ = baton_curl_get_long(handle, CURLINFO_RESPONSE_CODE, &code)
        return code
    }

    // MARK: Deadlines and the end

    /// When this transfer is late in a phase that curl does not watch.
    var deadline: Instant {
        if answering {
            return request.timeouts.stall > .zero ? lastActivity + request.timeouts.stall : .distantFuture
        }
        return request.timeouts.firstOctet > .zero ? began + request.timeouts.firstOctet : .distantFuture
    }

    private var mayHaveArrived: Bool {
        if sent > 0 || answering { return true }
        // Bodies that curl copied, and requests without one: octets of the head that went out.
        var octets = 0
        guard request.isRepeatable || request.body.isEmpty else { return false }
        return baton_curl_get_long(handle, CURLINFO_REQUEST_SIZE, &octets) != CURLE_OK || octets > 0
    }

    /// Tells the receiver; called once, after the handle has left its multi handle.
    func finish(_ code: CURLcode) {
        guard code == CURLE_OK else {
            let text = String(cString: errorText)
            let named = text.isEmpty ? String(cString: curl_easy_strerror(code)) : text
            return fail(tooLarge ? .tooLarge : Self.kind(of: code), named)
        }
        switch receiver {
        case .whole(let answer):
            answer(.success(HTTPResponse(status: status, headers: headers, body: body)))
        case .stream(let receive):
            showHead()
            receive(.end(nil))
        }
    }

    func fail(_ kind: HTTPError.Kind, _ text: String) {
        let error = HTTPError(kind, mayHaveArrived: mayHaveArrived, text)
        switch receiver {
        case .whole(let answer): answer(.failure(error))
        case .stream(let receive): receive(.end(error))
        }
    }

    static func kind(of code: CURLcode) -> HTTPError.Kind {
        switch code {
        case CURLE_URL_MALFORMAT, CURLE_UNSUPPORTED_PROTOCOL, CURLE_BAD_FUNCTION_ARGUMENT, CURLE_OUT_OF_MEMORY:
            .invalidRequest
        case CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_RESOLVE_PROXY: .resolve
        case CURLE_COULDNT_CONNECT, CURLE_INTERFACE_FAILED: .connect
        case CURLE_SSL_CONNECT_ERROR, CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CERTPROBLEM, CURLE_SSL_CIPHER,
            CURLE_SSL_CACERT_BADFILE, CURLE_SSL_ISSUER_ERROR, CURLE_SSL_ENGINE_NOTFOUND, CURLE_SSL_CRL_BADFILE:
            .tls
        case CURLE_OPERATION_TIMEDOUT: .timeout
        case CURLE_FILESIZE_EXCEEDED: .tooLarge
        default: .interrupted
        }
    }
}

// File-scope functions, since a closure made in a main-actor context would trap on another thread.

private func transfer(_ context: UnsafeMutableRawPointer?) -> CurlTransfer? {
    context.map { Unmanaged<CurlTransfer>.fromOpaque($0).takeUnretainedValue() }
}

private func curlTransferSends(
    _ bytes: UnsafeMutablePointer<CChar>?, _ size: Int, _ count: Int, _ context: UnsafeMutableRawPointer?
) -> Int {
    guard let me = transfer(context), let bytes else { return 0 }
    return me.send(into: UnsafeMutableRawBufferPointer(start: bytes, count: size * count))
}

private func curlTransferReceives(
    _ bytes: UnsafeMutablePointer<CChar>?, _ size: Int, _ count: Int, _ context: UnsafeMutableRawPointer?
) -> Int {
    guard let me = transfer(context), let bytes else { return 0 }
    // Fewer than were given makes curl end the transfer.
    return me.receive(UnsafeRawBufferPointer(start: bytes, count: size * count)) ? size * count : 0
}

private func curlTransferReceivesHeader(
    _ bytes: UnsafeMutablePointer<CChar>?, _ size: Int, _ count: Int, _ context: UnsafeMutableRawPointer?
) -> Int {
    guard let me = transfer(context), let bytes else { return 0 }
    return me.receive(header: UnsafeRawBufferPointer(start: bytes, count: size * count)) ? size * count : 0
}
