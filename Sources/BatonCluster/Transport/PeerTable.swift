// What all connections of the transport share: who is connected, who may dial, which session a message takes.
import BatonCore
import BatonPeer
import NIOCore

/// A plain value; the transport guards it with a Mutex and calls nothing from within.
struct PeerTable {
    /// A connection of any state, so that it can be told to end.
    struct Connection {
        let loop: any EventLoop
        let handler: NIOLoopBound<PeerHandler>
    }

    struct Route {
        var control: PeerLink?
        var bulk: PeerLink?

        subscript(channel: PeerChannel) -> PeerLink? {
            get {
                switch channel {
                case .control: control
                case .bulk: bulk
                }
            }
            set {
                switch channel {
                case .control: control = newValue
                case .bulk: bulk = newValue
                }
            }
        }
    }

    enum Stage: Equatable {
        case new
        case serving
        case stopping
    }

    var stage = Stage.new
    var roster: PeerRoster
    var connections: [PeerSessionID: Connection] = [:]
    var links: [PeerSessionID: PeerLink] = [:]
    var routes: [NodeID: Route] = [:]
    var endpoints: [NodeID: PeerEndpoint] = [:]
    var dialers: [NodeID: [PeerDialer]] = [:]
    /// Connections that began and are not gone, with the address of those that were accepted and are in their handshake.
    private var begun: [PeerSessionID: IPAddress?] = [:]
    private var greeting: [IPAddress: Int] = [:]
    var listener: (any Channel)?
    /// Completed when the last connection is gone while stopping.
    var drained: EventLoopPromise<Void>?

    init(me: NodeID) {
        self.roster = PeerRoster(me: me)
    }

    var isEmpty: Bool { begun.isEmpty }

    /// A connection from `address` (nil: dialed) begins. Nil: too many are in their handshake.
    mutating func begin(from address: IPAddress?) -> PeerSessionID? {
        guard stage == .serving else { return nil }
        if let address, greeting[address, default: 0] >= TransportLimits.handshakesPerAddress { return nil }
        guard let id = roster.begin() else { return nil }
        begun.updateValue(address, forKey: id)
        if let address { greeting[address, default: 0] += 1 }
        return id
    }

    mutating func admit(_ id: PeerSessionID, _ identity: PeerIdentity) -> Admission {
        guard begun[id] != nil, stage == .serving else { return .refused(.unexpected) }
        let admission = roster.admit(id, identity)
        switch admission {
        case .admitted: greeted(id)
        case .refused: break
        }
        return admission
    }

    /// A connection is gone. False: that was known.
    mutating func end(_ id: PeerSessionID) -> Bool {
        guard begun[id] != nil else { return false }
        greeted(id)
        begun[id] = nil
        connections[id] = nil
        roster.ended(id)
        return true
    }

    private mutating func greeted(_ id: PeerSessionID) {
        guard let address = begun[id] ?? nil, let count = greeting[address] else { return }
        greeting[address] = count > 1 ? count - 1 : nil
        begun.updateValue(nil, forKey: id)
    }

    mutating func opened(_ link: PeerLink) {
        links[link.id] = link
        routes[link.identity.run.node, default: Route()][link.identity.channel] = link
    }

    mutating func closed(_ link: PeerLink) {
        links[link.id] = nil
        roster.ended(link.id)
        let node = link.identity.run.node
        guard var route = routes[node], route[link.identity.channel] === link else { return }
        route[link.identity.channel] = nil
        routes[node] = route.control == nil && route.bulk == nil ? nil : route
    }

    func count(of channel: PeerChannel) -> Int { routes.values.count { $0[channel] != nil } }
}
