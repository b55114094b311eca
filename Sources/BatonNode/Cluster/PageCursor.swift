// Where a listing over several nodes goes on: each unfinished node with its own cursor.
import BatonCore
import Foundation

/// `n1~0:9,n2~`: nodes in order, each with the cursor that it gave (empty: from its start). A node that is not in it is
/// finished, or came later. Also the id of an operation over several nodes, each with its own id.
struct PageCursor: Equatable, Sendable {
    struct Place: Equatable, Sendable {
        var node: String
        var inner: String
    }

    var places: [Place]

    init(_ places: [Place]) {
        self.places = places
    }

    /// Nil for anything but what `text` makes.
    init?(text: String) {
        places = []
        guard !text.isEmpty, text.utf8.count <= AdminLimits.targetOctets else { return nil }
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let halves = part.split(separator: "~", omittingEmptySubsequences: false)
            guard halves.count == 2, !halves[0].isEmpty, let inner = String(halves[1]).removingPercentEncoding,
                !places.contains(where: { $0.node == halves[0] })
            else { return nil }
            places.append(Place(node: String(halves[0]), inner: inner))
        }
    }

    /// Nil when nothing is left.
    var text: String? {
        guard !places.isEmpty else { return nil }
        return places.map { place in
            let inner = PeerQuery.encoded(place.inner).replacingOccurrences(of: "~", with: "%7E")
            return "\(place.node)~\(inner)"
        }.joined(separator: ",")
    }
}
