// The event loop that an actor lives on.
import NIOCore

/// Keeps an event loop and its executor alive for an actor pinned to it: `unownedExecutor` is unowned literally.
package struct LoopHome: Sendable {
    package let loop: any EventLoop
    package let executor: any SerialExecutor

    package init(_ loop: any EventLoop) {
        self.loop = loop
        self.executor = loop.executor
    }

    package var unownedExecutor: UnownedSerialExecutor { executor.asUnownedSerialExecutor() }
}
