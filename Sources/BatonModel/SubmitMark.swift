// What a stored message knows of the SUBMIT that it went through or was to go through (PROTOCOL S5, S6).
import BatonCore

/// The key of a SUBMIT, kept with every copy that it led to, so that whoever reads the copy later can say which SUBMIT it was.
package struct SubmitMark: Hashable, Sendable {
    /// The node that took the message from its client, in which run, and the how many-th SUBMIT of that run.
    package let ingress: NodeID
    package let ingressIncarnation: Incarnation
    package let counter: UInt64
    /// Set on the ingress node's own copy, which is held back: the run of the node that may have the message too (S6).
    package let held: HeldFor?

    /// The run that the unanswered SUBMIT named.
    package struct HeldFor: Hashable, Sendable {
        package let receiver: NodeID
        package let incarnation: Incarnation

        package init(receiver: NodeID, incarnation: Incarnation) {
            self.receiver = receiver
            self.incarnation = incarnation
        }
    }

    package init(ingress: NodeID, ingressIncarnation: Incarnation, counter: UInt64, held: HeldFor? = nil) {
        self.ingress = ingress
        self.ingressIncarnation = ingressIncarnation
        self.counter = counter
        self.held = held
    }
}

extension Envelope {
    /// The how many-th recipient of the message as its client gave it. Ids of reports and events are made of it, so that parts
    /// of one message on several nodes never share one (docs/decisions/0005).
    package func number(of recipient: UInt32) -> UInt32 {
        guard let numbers, numbers.indices.contains(Int(recipient)) else { return recipient }
        return numbers[Int(recipient)]
    }

    /// The recipient that has this number here; nil where it belongs to another part.
    package func recipient(number: UInt32) -> UInt32? {
        guard let numbers else { return Int(number) < recipients.count ? number : nil }
        // Strictly rising: a binary search.
        var low = 0
        var high = min(numbers.count, recipients.count)
        while low < high {
            let middle = (low + high) / 2
            if numbers[middle] < number { low = middle + 1 } else { high = middle }
        }
        return low < min(numbers.count, recipients.count) && numbers[low] == number ? UInt32(low) : nil
    }

    /// The same message for some of its recipients (indices, strictly rising), under another mark. All else is shared.
    package func part(_ indices: [UInt32]?, submit: SubmitMark?) -> Envelope {
        let chosen = indices?.filter { recipients.indices.contains(Int($0)) }
        let isAll = chosen.map { $0.count == recipients.count } ?? true
        return Envelope(
            id: id, arrival: arrival, sender: sender, envid: envid, returnContent: returnContent, flags: flags,
            senderClass: senderClass, user: user, client: client, sessionID: sessionID, messageIDField: messageIDField,
            recipients: isAll ? recipients : (chosen ?? []).map { recipients[Int($0)] }, subjects: subjects,
            traits: traits, submit: submit, numbers: isAll ? numbers : (chosen ?? []).map { number(of: $0) })
    }
}
