// The configuration as the modules get it: shares of memory, sites, and what a scrape of the process's memory leads to.
import BatonCore
import BatonDelivery
import BatonQueue
import Testing

@testable import BatonNode

private func parse(_ text: String) throws -> NodeConfiguration {
    try ConfigurationLoader.parse(Array(text.utf8), file: "b.yaml")
}

@Test(arguments: [16, 64, 256, 1024, 8192, 1 << 20])
func sharesOverrunTheMemory(_ mebibytes: Int) {
    let memory = mebibytes << 20
    let shares = MemoryShares(memory)
    #expect(shares.incoming + shares.bodies + shares.outgoing + shares.jobs * QueueLimits.jobOctets <= memory)
    #expect(shares.jobs <= QueueLimits.jobsMax)
    #expect(shares.jobs * QueueLimits.jobOctets >= memory / 8 * 3 - QueueLimits.jobOctets || shares.jobs == 10_000_000)
}

@Test func jobsThatMemoryDoesNotHold() throws {
    let settings = try parse("limits: { memory: 1GiB }").queueSettings(partitions: 2, seed: 1)
    #expect(settings.jobsMax == (384 << 20) / QueueLimits.jobOctets / 2)
    #expect(settings.residentBytes == 128 << 20)
    #expect(try parse("limits: { memory: 16GiB }").queueSettings(partitions: 1, seed: 1).jobsMax == 10_000_000)
}

@Test func siteSettingThatIsTakenAndIgnored() throws {
    let delivery = try parse(
        "sites: [{ domain: a.test, connections: 3, rate: 120/m, messages_per_connection: 7, recipients_per_transaction: 9 }]"
    ).deliverySettings
    let rule = try #require(delivery.sites.first)
    #expect(rule.connections == 3)
    #expect(rule.messagesPerSecond == 2)
    #expect(rule.messagesPerConnection == 7)
    #expect(rule.recipientsPerTransaction == 9)
}

@Test func shippedSitesThatDeliveryNeverSees() throws {
    let delivery = try parse("sites: [{ domain: a.test, name: mine }]").deliverySettings
    let names = delivery.sites.compactMap { $0.name.map { String(decoding: $0, as: UTF8.self) } }
    #expect(names.first == "mine")
    #expect(names.dropFirst() == ShippedSites.rules.map(\.name)[...])
}

@Test func memoryKeptAfterItsPeak() {
    let limit = 1 << 30
    #expect(MemoryService.isDue(resident: limit, free: limit / 2, limit))
    #expect(!MemoryService.isDue(resident: limit, free: limit / 16, limit), "nothing to give back")
    #expect(!MemoryService.isDue(resident: limit / 2, free: limit / 2, limit), "nobody needs it")
}
