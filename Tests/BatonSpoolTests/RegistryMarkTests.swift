// `registry-seen`: what a disk remembers of the registry survives, or says that it did not.
import BatonCore
import BatonModel
import BatonTestKit
import Testing

@testable import BatonSpool

private let old = RegistryMark(store: 7, revision: 40, recovery: 1)
private let new = RegistryMark(
    store: 0xffff_ffff_ffff_fff1, revision: 41, recovery: 2, tally: 9, isRefused: true)

private func open(_ disk: MemoryDisk) throws -> DataDirectory {
    try DataDirectory.open(path: "data", disk: disk, cluster: "c", nodeName: "n1", random: { 5 })
}

@Test func markOfTheRegistryIsForgotten() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let directory = try open(disk)
    let file = RegistryMarkFile(directory)
    #expect(file.load().mark == nil && !file.load().wasDamaged)
    try file.save(old)
    try file.save(new)
    directory.close()
    let again = RegistryMarkFile(try open(disk.reopened()))
    #expect(again.load().mark == new)
}

@Test func damagedMarkOfTheRegistryIsBelievedOrTakenForNone() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let directory = try open(disk)
    try RegistryMarkFile(directory).save(new)
    let size = try #require(disk.contents("data/registry-seen")).count
    directory.close()
    for offset in 0..<size {
        let copy = disk.reopened()
        copy.flip("data/registry-seen", at: offset)
        let found = RegistryMarkFile(try open(copy)).load()
        #expect(found.mark == nil && found.wasDamaged, "flipped at \(offset)")
    }
}

@Test func powerFailsWhileTheMarkOfTheRegistryIsWritten() throws {
    let disk = MemoryDisk()
    let file = RegistryMarkFile(try open(disk))
    try file.save(old)
    let begun = disk.journal.count
    try file.save(new)
    let journal = disk.journal
    var found: Set<RegistryMark> = []
    for cut in begun...journal.count {
        for seed in UInt64(0)..<8 {
            let image = DiskImage.afterPowerLoss(journal, cut: cut, seed: seed)
            let (mark, wasDamaged) = RegistryMarkFile(try open(image)).load()
            #expect(!wasDamaged && (mark == old || mark == new), "cut at \(cut), seed \(seed)")
            if let mark { found.insert(mark) }
        }
    }
    #expect(found == [old, new])
    #expect(
        RegistryMarkFile(try open(DiskImage.afterPowerLoss(journal, cut: journal.count, seed: 1))).load().mark == new)
}
