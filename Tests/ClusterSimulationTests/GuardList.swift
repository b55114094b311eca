// Which rules a test takes out, and the seed that shows each.
@testable import BatonCluster

struct RemovedGuard: Sendable {
    let name: String
    let bit: Guards
    /// A seed that goes red without this rule and is clean with it.
    let seed: UInt64
    /// A plan made for this rule, where the general one hardly meets its case.
    var plan: @Sendable (UInt64) -> Plan = { Plan(seed: $0) }
}

let redGuards: [RemovedGuard] = [
    RemovedGuard(name: "syncBeforeAck", bit: .syncBeforeAck, seed: 1),
    RemovedGuard(name: "prefix", bit: .prefix, seed: 1),
    RemovedGuard(name: "everyMember", bit: .everyMember, seed: 1),
    RemovedGuard(name: "ensembleFixed", bit: .ensembleFixed, seed: 1),
    RemovedGuard(name: "sealStopsAcks", bit: .sealStopsAcks, seed: 33),
    RemovedGuard(name: "reappendAfterSeal", bit: .reappendAfterSeal, seed: 30),
    RemovedGuard(name: "filesBeforeKey", bit: .filesBeforeKey, seed: 1),
    RemovedGuard(name: "missingIsDamage", bit: .missingIsDamage, seed: 55),
    RemovedGuard(name: "freshIncarnation", bit: .freshIncarnation, seed: 1),
    RemovedGuard(name: "registeredWriter", bit: .registeredWriter, seed: 104),
    RemovedGuard(name: "claimBeforeSeal", bit: .claimBeforeSeal, seed: 1),
    RemovedGuard(name: "oldDrainerGone", bit: .oldDrainerGone, seed: 7),
    RemovedGuard(name: "persistedSeal", bit: .persistedSeal, seed: 758),
    RemovedGuard(name: "unionOfOutcomes", bit: .unionOfOutcomes, seed: 171),
    RemovedGuard(name: "invalidTailNeverAlone", bit: .invalidTailNeverAlone, seed: 43),
    RemovedGuard(name: "newIncarnation", bit: .newIncarnation, seed: 10),
    RemovedGuard(name: "quietAfterStart", bit: .quietAfterStart, seed: 1, plan: Plan.forgottenPromises),
    RemovedGuard(name: "resumeLateTakeover", bit: .resumeLateTakeover, seed: 15),
    RemovedGuard(name: "lateOutcomes", bit: .lateOutcomes, seed: 1),
    RemovedGuard(name: "preferOwner", bit: .preferOwner, seed: 36),
    RemovedGuard(name: "drainEpoch", bit: .drainEpoch, seed: 29),
    RemovedGuard(name: "freshPromise", bit: .freshPromise, seed: 1),
    RemovedGuard(name: "staleByCompareAndSet", bit: .staleByCompareAndSet, seed: 1),
    RemovedGuard(name: "unknownIsNotStale", bit: .unknownIsNotStale, seed: 1),
    RemovedGuard(name: "staleMayNotTakeOver", bit: .staleMayNotTakeOver, seed: 9),
    RemovedGuard(name: "catchUpBeforeLeavingStale", bit: .catchUpBeforeLeavingStale, seed: 1),
    RemovedGuard(name: "settledByBackups", bit: .settledByBackups, seed: 1),
    RemovedGuard(name: "doubtAfterLeaving", bit: .doubtAfterLeaving, seed: 1),
    RemovedGuard(name: "resendToNewIncarnation", bit: .resendToNewIncarnation, seed: 16),
    RemovedGuard(name: "window", bit: .window, seed: 1),
    RemovedGuard(name: "reportBeforeOutcome", bit: .reportBeforeOutcome, seed: 19),
    RemovedGuard(name: "joiningFirst", bit: .joiningFirst, seed: 1),
    RemovedGuard(name: "syncedBeforeJoining", bit: .syncedBeforeJoining, seed: 1),
    RemovedGuard(name: "syncedBeforeFinished", bit: .syncedBeforeFinished, seed: 1),
    RemovedGuard(name: "keyGoesLast", bit: .keyGoesLast, seed: 1),
    RemovedGuard(name: "finishedCommitsMove", bit: .finishedCommitsMove, seed: 228),
    RemovedGuard(name: "heldWhileMoved", bit: .heldWhileMoved, seed: 1),
    RemovedGuard(name: "epochVoidsMove", bit: .epochVoidsMove, seed: 2),
    RemovedGuard(name: "decisionBeforeTombstone", bit: .decisionBeforeTombstone, seed: 55),
    RemovedGuard(name: "refuseAfterNo", bit: .refuseAfterNo, seed: 90),
    RemovedGuard(name: "submitNamesIncarnation", bit: .submitNamesIncarnation, seed: 4),
    RemovedGuard(name: "pendingIsNotNo", bit: .pendingIsNotNo, seed: 1),
    RemovedGuard(name: "failedIsUnknown", bit: .failedIsUnknown, seed: 130),
    RemovedGuard(name: "noOnlyWhenScanned", bit: .noOnlyWhenScanned, seed: 147),
    RemovedGuard(name: "heldIsStored", bit: .heldIsStored, seed: 2),
    RemovedGuard(name: "rememberFinished", bit: .rememberFinished, seed: 27),
    RemovedGuard(name: "registrationSettled", bit: .registrationSettled, seed: 1, plan: Plan.doubledRegistrations),
    RemovedGuard(name: "rebuiltIsMarked", bit: .rebuiltIsMarked, seed: 55),
    RemovedGuard(name: "haveWhenCopied", bit: .haveWhenCopied, seed: 5),
    RemovedGuard(name: "orderedIncarnations", bit: .orderedIncarnations, seed: 1, plan: Plan.lateFramesOfTheDead),
    RemovedGuard(name: "voidIsNotHad", bit: .voidIsNotHad, seed: 50547),
    RemovedGuard(name: "forgottenIsUnknown", bit: .forgottenIsUnknown, seed: 42573),
    RemovedGuard(name: "unknownIsFenced", bit: .unknownIsFenced, seed: 125_612),
    RemovedGuard(name: "everyPart", bit: .everyPart, seed: 100_000),
    RemovedGuard(name: "numbersKept", bit: .numbersKept, seed: 100_000),
    RemovedGuard(name: "refusedIsCounted", bit: .refusedIsCounted, seed: 100_000),
]
