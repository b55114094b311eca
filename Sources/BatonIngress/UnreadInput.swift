// What a socket holds that its loop has not come to read.
import Glibc
import NIOCore

extension ChannelHandlerContext {
    /// Whether octets wait in the socket. Does not wait and takes none; false for a channel without a socket.
    var hasUnreadInput: Bool {
        let seen = try? pipeline.syncOperations.withUnsafeTransportIfAvailable(of: CInt.self) { descriptor in
            var octet: UInt8 = 0
            return recv(descriptor, &octet, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)) > 0
        }
        return seen ?? false
    }
}
