// The port to a resolver: batches of questions out, batches of answers back.

/// Looks up names. Any thread; never blocks; bounded.
package protocol Resolving: AnyObject, Sendable {
    /// Each question is answered exactly once, failures and refusals included.
    func resolve(_ questions: [DNSQuestion], for receiver: any AnswerReceiving)
}

/// Gets answers on the resolver's thread (or the caller's, when refused at once), one call per batch.
package protocol AnswerReceiving: AnyObject, Sendable {
    func answered(_ replies: [DNSReply])
}
