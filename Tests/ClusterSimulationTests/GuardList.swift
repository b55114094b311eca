// Which rules a test takes out, and the seed that shows each.
@testable import BatonCluster

struct RemovedGuard: Sendable {
    let name: String
    let bit: Guards
    /// A seed that goes red without this rule and is clean with it.
    let seed: UInt64
}

let redGuards: [RemovedGuard] = [
    RemovedGuard(name: "syncBeforeAck", bit: .syncBeforeAck, seed: 1),
    RemovedGuard(name: "prefix", bit: .prefix, seed: 1),
    RemovedGuard(name: "everyMember", bit: .everyMember, seed: 1),
    RemovedGuard(name: "ensembleFixed", bit: .ensembleFixed, seed: 1),
    RemovedGuard(name: "sealStopsAcks", bit: .sealStopsAcks, seed: 33),
    RemovedGuard(name: "reappendAfterSeal", bit: .reappendAfterSeal, seed: 30),
    RemovedGuard(name: "filesBeforeKey", bit: .filesBeforeKey, seed: 30),
    RemovedGuard(name: "freshIncarnation", bit: .freshIncarnation, seed: 1),
    RemovedGuard(name: "claimBeforeSeal", bit: .claimBeforeSeal, seed: 1),
    RemovedGuard(name: "oldDrainerGone", bit: .oldDrainerGone, seed: 23),
    RemovedGuard(name: "newIncarnation", bit: .newIncarnation, seed: 10),
    RemovedGuard(name: "resumeLateTakeover", bit: .resumeLateTakeover, seed: 8),
    RemovedGuard(name: "drainEpoch", bit: .drainEpoch, seed: 13),
    RemovedGuard(name: "freshPromise", bit: .freshPromise, seed: 2),
    RemovedGuard(name: "staleByCompareAndSet", bit: .staleByCompareAndSet, seed: 2),
    RemovedGuard(name: "unknownIsNotStale", bit: .unknownIsNotStale, seed: 1),
    RemovedGuard(name: "settledByBackups", bit: .settledByBackups, seed: 1),
    RemovedGuard(name: "resendToNewIncarnation", bit: .resendToNewIncarnation, seed: 10),
    RemovedGuard(name: "window", bit: .window, seed: 1),
    RemovedGuard(name: "reportBeforeOutcome", bit: .reportBeforeOutcome, seed: 2),
    RemovedGuard(name: "joiningFirst", bit: .joiningFirst, seed: 1),
    RemovedGuard(name: "syncedBeforeJoining", bit: .syncedBeforeJoining, seed: 1),
    RemovedGuard(name: "syncedBeforeFinished", bit: .syncedBeforeFinished, seed: 1),
    RemovedGuard(name: "keyGoesLast", bit: .keyGoesLast, seed: 1),
    RemovedGuard(name: "heldWhileMoved", bit: .heldWhileMoved, seed: 3),
    RemovedGuard(name: "epochVoidsMove", bit: .epochVoidsMove, seed: 2),
    RemovedGuard(name: "decisionBeforeTombstone", bit: .decisionBeforeTombstone, seed: 27),
    RemovedGuard(name: "submitNamesIncarnation", bit: .submitNamesIncarnation, seed: 4),
    RemovedGuard(name: "pendingIsNotNo", bit: .pendingIsNotNo, seed: 2),
    RemovedGuard(name: "heldIsStored", bit: .heldIsStored, seed: 2),
]
