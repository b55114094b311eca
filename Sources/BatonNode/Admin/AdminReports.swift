// The JSON that the admin HTTP gives: one Codable value for each shape in docs/HTTP.md.
import BatonCore
import BatonModel

/// A value that is written as `null` when it is absent, so that a reader finds the key.
@propertyWrapper
package struct Nullable<Value: Codable & Sendable>: Codable, Sendable {
    package var wrappedValue: Value?

    package init(wrappedValue: Value?) { self.wrappedValue = wrappedValue }

    package init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        wrappedValue = container.decodeNil() ? nil : try container.decode(Value.self)
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        if let wrappedValue { try container.encode(wrappedValue) } else { try container.encodeNil() }
    }
}

extension Nullable: Equatable where Value: Equatable {}
extension Nullable: Hashable where Value: Hashable {}

/// `GET /health`.
package struct HealthReport: Codable, Sendable {
    package enum State: String, Codable, Sendable {
        case starting
        case serving
        case degraded
        case draining
        /// The spool takes no mail any more: a disk failed.
        case failed
        /// A node of a cluster that reaches neither the other copies nor the control plane: no mail is taken.
        case cutOff = "cut_off"
    }

    package struct Disk: Codable, Sendable {
        package var freeBytes: UInt64
        package var totalBytes: UInt64
        package var minFreeBytes: UInt64

        package init(freeBytes: UInt64, totalBytes: UInt64, minFreeBytes: UInt64) {
            self.freeBytes = freeBytes
            self.totalBytes = totalBytes
            self.minFreeBytes = minFreeBytes
        }

        /// 0 to 1, to the thousandth.
        package var usedFraction: Double {
            guard totalBytes > 0, freeBytes <= totalBytes else { return 0 }
            return (Double(totalBytes - freeBytes) / Double(totalBytes) * 1000).rounded() / 1000
        }
    }

    package var state: State
    package var node: String
    package var version: String
    /// Disks that hold a message when its 250 is sent.
    package var copies: Int
    package var disk: Disk
    /// Why `degraded`; empty otherwise.
    package var reasons: [String]

    package init(state: State, node: String, version: String, copies: Int, disk: Disk, reasons: [String] = []) {
        self.state = state
        self.node = node
        self.version = version
        self.copies = copies
        self.disk = disk
        self.reasons = reasons
    }

    /// 200 while mail is taken, damaged spool or not.
    package var isServing: Bool { state == .serving || state == .degraded }
}

/// Recipients by state.
package struct QueueTotalReport: Codable, Sendable, Hashable {
    package var ready: Int
    package var deferred: Int
    package var suspended: Int
    package var inFlight: Int
    /// Held because the stored body is damaged.
    package var damaged: Int

    package init(ready: Int = 0, deferred: Int = 0, suspended: Int = 0, inFlight: Int = 0, damaged: Int = 0) {
        self.ready = ready
        self.deferred = deferred
        self.suspended = suspended
        self.inFlight = inFlight
        self.damaged = damaged
    }
}

/// `GET /api/v1/queue`.
package struct QueueReport: Codable, Sendable {
    package struct Site: Codable, Sendable {
        package var site: String
        package var domains: Int
        package var ready: Int
        package var deferred: Int
        package var suspended: Int
        package var inFlight: Int
        package var oldestSeconds: Int
        package var connections: Int
        @Nullable package var lastError: String?

        package init(
            site: String, domains: Int, ready: Int, deferred: Int, suspended: Int, inFlight: Int, oldestSeconds: Int,
            connections: Int, lastError: String?
        ) {
            self.site = site
            self.domains = domains
            self.ready = ready
            self.deferred = deferred
            self.suspended = suspended
            self.inFlight = inFlight
            self.oldestSeconds = oldestSeconds
            self.connections = connections
            self.lastError = lastError
        }
    }

    package var total: QueueTotalReport
    package var sites: [Site]
    @Nullable package var next: String?
    /// Nodes that did not answer.
    package var incomplete: [String]

    package init(total: QueueTotalReport, sites: [Site], next: String?, incomplete: [String] = []) {
        self.total = total
        self.sites = sites
        self.next = next
        self.incomplete = incomplete
    }
}

/// `GET /api/v1/queue/messages`: one row for each queued recipient.
package struct QueueListReport: Codable, Sendable {
    package struct Row: Codable, Sendable {
        package var id: String
        /// Empty: the null reverse-path.
        package var sender: String
        package var recipient: String
        package var site: String
        /// ready, deferred, suspended, in_flight or damaged.
        package var state: String
        package var attempts: Int
        /// RFC 3339.
        package var arrived: String
        @Nullable package var due: String?
        @Nullable package var lastReply: String?

        package init(
            id: String, sender: String, recipient: String, site: String, state: String, attempts: Int, arrived: String,
            due: String?, lastReply: String?
        ) {
            self.id = id
            self.sender = sender
            self.recipient = recipient
            self.site = site
            self.state = state
            self.attempts = attempts
            self.arrived = arrived
            self.due = due
            self.lastReply = lastReply
        }
    }

    package var messages: [Row]
    @Nullable package var next: String?
    package var incomplete: [String]

    package init(messages: [Row], next: String?, incomplete: [String] = []) {
        self.messages = messages
        self.next = next
        self.incomplete = incomplete
    }
}

/// One thing that happened to a recipient: an attempt, or a verdict without one.
package struct AttemptReport: Codable, Sendable, Hashable {
    /// RFC 3339.
    package var time: String
    /// Reception, Delivery, TransientFailure, Bounce, Expiration, AdminBounce or DelayNotice, as in the event log.
    package var type: String
    /// Attempts so far, this one included.
    package var attempt: Int
    /// 0: no reply came.
    package var code: Int
    @Nullable package var enhancedCode: String?
    package var reply: String
    package var command: String
    @Nullable package var peerName: String?
    @Nullable package var peerAddress: String?
    @Nullable package var site: String?

    package init(
        time: String, type: String, attempt: Int, code: Int, enhancedCode: String?, reply: String, command: String,
        peerName: String?, peerAddress: String?, site: String?
    ) {
        self.time = time
        self.type = type
        self.attempt = attempt
        self.code = code
        self.enhancedCode = enhancedCode
        self.reply = reply
        self.command = command
        self.peerName = peerName
        self.peerAddress = peerAddress
        self.site = site
    }
}

/// `GET /api/v1/messages/{id}`; an element of `GET /api/v1/messages`, then without attempts.
package struct MessageReport: Codable, Sendable {
    package struct Recipient: Codable, Sendable {
        package var recipient: String
        package var site: String
        /// ready, deferred, suspended, in_flight, damaged, delivered, bounced, expired or admin_bounced.
        package var state: String
        package var attemptsMade: Int
        @Nullable package var nextDue: String?
        package var attempts: [AttemptReport]

        package init(
            recipient: String, site: String, state: String, attemptsMade: Int, nextDue: String?,
            attempts: [AttemptReport]
        ) {
            self.recipient = recipient
            self.site = site
            self.state = state
            self.attemptsMade = attemptsMade
            self.nextDue = nextDue
            self.attempts = attempts
        }
    }

    package var id: String
    package var node: String
    /// Empty: the null reverse-path.
    package var sender: String
    package var messageId: String
    /// Bytes; 0 if unknown.
    package var size: Int
    /// RFC 3339.
    package var arrived: String
    package var client: String
    package var user: String
    package var envid: String
    package var recipients: [Recipient]
    package var incomplete: [String]

    package init(
        id: String, node: String, sender: String, messageId: String, size: Int, arrived: String, client: String,
        user: String, envid: String, recipients: [Recipient], incomplete: [String] = []
    ) {
        self.id = id
        self.node = node
        self.sender = sender
        self.messageId = messageId
        self.size = size
        self.arrived = arrived
        self.client = client
        self.user = user
        self.envid = envid
        self.recipients = recipients
        self.incomplete = incomplete
    }
}

/// `GET /api/v1/messages?…`.
package struct MessageListReport: Codable, Sendable {
    package var messages: [MessageReport]
    @Nullable package var next: String?
    package var incomplete: [String]

    package init(messages: [MessageReport], next: String?, incomplete: [String] = []) {
        self.messages = messages
        self.next = next
        self.incomplete = incomplete
    }
}

/// `POST /api/v1/queue/{verb}` and `GET /api/v1/operations/{id}`.
package struct OperationReport: Codable, Sendable {
    /// The job's id while it goes on, and for a while after.
    package var operation: String
    package var verb: String
    /// Recipients changed so far.
    package var count: Int
    /// Recipients left alone because an attempt is under way.
    package var inFlight: Int
    package var done: Bool
    package var incomplete: [String]

    package init(
        operation: String, verb: String, count: Int, inFlight: Int, done: Bool, incomplete: [String] = []
    ) {
        self.operation = operation
        self.verb = verb
        self.count = count
        self.inFlight = inFlight
        self.done = done
        self.incomplete = incomplete
    }
}

/// RFC 9457 problem details, `application/problem+json`.
package struct ProblemReport: Codable, Sendable, Error {
    package var type: String
    package var title: String
    package var status: Int
    package var detail: String

    package init(_ status: Int, _ title: String, _ detail: String) {
        self.type = "about:blank"
        self.title = title
        self.status = status
        self.detail = detail
    }
}
