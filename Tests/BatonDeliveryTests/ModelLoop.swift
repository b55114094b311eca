// An embedded loop that actors may be pinned to, as long as one thread drives everything.
import Dispatch
import NIOCore
import NIOEmbedded

/// `EmbeddedEventLoop` refuses to be an executor, since it cannot tell threads apart; a model that is one thread does not need
/// that. Nothing may be awaited on its actors: they are entered by `assumeIsolated` only.
final class ModelLoop: EventLoop, SerialExecutor {
    let embedded: EmbeddedEventLoop

    init(_ embedded: EmbeddedEventLoop) { self.embedded = embedded }

    var inEventLoop: Bool { true }
    var now: NIODeadline { embedded.now }
    var executor: any SerialExecutor { self }

    func execute(_ task: @escaping @Sendable () -> Void) { embedded.execute(task) }

    func submit<T>(_ task: @escaping @Sendable () throws -> T) -> EventLoopFuture<T> { embedded.submit(task) }

    func scheduleTask<T>(deadline: NIODeadline, _ task: @escaping @Sendable () throws -> T) -> Scheduled<T> {
        embedded.scheduleTask(deadline: deadline, task)
    }

    func scheduleTask<T>(in span: TimeAmount, _ task: @escaping @Sendable () throws -> T) -> Scheduled<T> {
        embedded.scheduleTask(in: span, task)
    }

    func shutdownGracefully(queue: DispatchQueue, _ callback: @escaping @Sendable ((any Error)?) -> Void) {
        callback(nil)
    }

    func enqueue(_ job: consuming ExecutorJob) { preconditionFailure("nothing is awaited in the model") }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }

    func checkIsolated() {}
}
