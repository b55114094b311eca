// swift-tools-version: 6.2
// Baton's targets by floor: a module imports only from the floors below it (docs/ARCHITECTURE.md; TidyTests checks it).

import PackageDescription

// MARK: Settings every Swift target shares

let settings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .treatAllWarnings(as: .error),
    .treatWarning("DeprecatedDeclaration", as: .warning),
]

// MARK: External products

let nioCore: Target.Dependency = .product(name: "NIOCore", package: "swift-nio")
let nioPosix: Target.Dependency = .product(name: "NIOPosix", package: "swift-nio")
let nioEmbedded: Target.Dependency = .product(name: "NIOEmbedded", package: "swift-nio")
let deque: Target.Dependency = .product(name: "DequeModule", package: "swift-collections")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let metrics: Target.Dependency = .product(name: "Metrics", package: "swift-metrics")
let lifecycle: Target.Dependency = .product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let unixSignals: Target.Dependency = .product(name: "UnixSignals", package: "swift-service-lifecycle")
let arguments: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")
let yams: Target.Dependency = .product(name: "Yams", package: "Yams")
let hummingbird: Target.Dependency = .product(name: "Hummingbird", package: "hummingbird")
let histogram: Target.Dependency = .product(name: "Histogram", package: "hdrhistogram-swift")

// MARK: Targets, lowest floor first

func module(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .testTarget(
        name: name, dependencies: dependencies + ["BatonTestKit"], exclude: fixtures(of: name),
        swiftSettings: settings)
}

/// Fixture folders are read by path from the sources' place, so they are no resources.
func fixtures(of name: String) -> [String] {
    switch name {
    case "BatonDNSTests": ["Fixtures"]
    case "Fuzz": ["README.md", "run", "Targets", "corpus"]
    default: []
    }
}

let floor0: [Target] = [
    .target(name: "CBatonSystem"),
    .systemLibrary(name: "CLZ4", pkgConfig: "liblz4", providers: [.apt(["liblz4-dev"])]),
    .systemLibrary(name: "CUnbound", providers: [.apt(["libunbound-dev"])]),
    .systemLibrary(name: "CIDN2", providers: [.apt(["libidn2-dev"])]),
    .systemLibrary(name: "COpenSSL", pkgConfig: "openssl", providers: [.apt(["libssl-dev"])]),
    .systemLibrary(name: "CCurl", providers: [.apt(["libcurl4-openssl-dev"])]),
]

let floor1: [Target] = [
    module("BatonCore", ["CBatonSystem"]),
    module("BatonRuntime", ["BatonCore", "CBatonSystem", nioCore, nioPosix, deque]),
]

let floor2: [Target] = [
    module("BatonModel", ["BatonCore", nioCore])
]

let floor3: [Target] = [
    module("BatonSMTP", ["BatonCore", "BatonModel", "CBatonSystem", nioCore]),
    module("BatonMail", ["BatonCore", "BatonModel", nioCore]),
    module("BatonPeer", ["BatonCore", "BatonModel", nioCore]),
]

let floor4: [Target] = [
    module(
        "BatonSpool",
        [
            "BatonCore", "BatonRuntime", "BatonModel", "CLZ4", "CBatonSystem", nioCore, deque, logging,
            metrics,
        ]),
    module("BatonQueue", ["BatonCore", "BatonRuntime", "BatonModel", nioCore, deque, logging, metrics]),
    module(
        "BatonDNS",
        [
            "BatonCore", "BatonRuntime", "BatonModel", "CUnbound", "CIDN2", "CBatonSystem", nioCore, deque, logging,
            metrics,
        ]),
    module("BatonHTTPClient", ["BatonCore", "BatonRuntime", "CCurl"]),
    module("BatonTLS", ["BatonCore", "COpenSSL", nioCore]),
]

let floor5: [Target] = [
    module(
        "BatonIngress",
        [
            "BatonCore", "BatonRuntime", "BatonModel", "BatonSMTP", "BatonMail", nioCore, nioPosix, deque, logging,
            metrics,
        ]),
    module(
        "BatonDelivery",
        [
            "BatonCore", "BatonRuntime", "BatonModel", "BatonSMTP", "BatonMail", "BatonQueue", "BatonDNS", nioCore,
            nioPosix, deque, logging, metrics,
        ]),
    module("BatonControlPlane", ["BatonCore", "BatonRuntime", "BatonModel", "BatonHTTPClient", logging]),
    module(
        "BatonCluster",
        [
            "BatonCore", "BatonRuntime", "BatonModel", "BatonPeer", "BatonSpool", "BatonControlPlane", "BatonTLS", nioCore,
            nioPosix, deque, logging, metrics,
        ]),
]

/// `BATON_NODE_ALONE=1` builds BatonNode without the floors 3 to 5, for work on configuration, admin and metrics.
let nodeAlone = Context.environment["BATON_NODE_ALONE"] == "1"

let floor6: [Target] = [
    nodeAlone
        ? .target(
            name: "BatonNode",
            dependencies: [
                "BatonCore", "BatonRuntime", "BatonModel", "CBatonSystem", nioCore, nioPosix, deque, logging, metrics,
                lifecycle, unixSignals, yams, hummingbird,
            ], sources: ["Configuration", "Admin", "Cluster", "Metrics"], swiftSettings: settings)
        : module(
            "BatonNode",
            [
                "BatonCore", "BatonRuntime", "BatonModel", "BatonSMTP", "BatonMail", "BatonSpool", "BatonQueue",
                "BatonDNS", "BatonIngress", "BatonDelivery", "BatonPeer", "BatonHTTPClient", "BatonControlPlane",
                "BatonCluster", "BatonTLS", "CBatonSystem", nioCore, nioPosix, deque, logging, metrics,
                lifecycle, unixSignals, yams, hummingbird,
            ])
]

let floor7: [Target] = [
    .executableTarget(
        name: "baton", dependencies: ["BatonNode", "BatonModel", "BatonCore", arguments, logging],
        swiftSettings: nodeAlone ? settings + [.define("BATON_NODE_ALONE")] : settings),
    .executableTarget(
        name: "baton-bench",
        dependencies: [
            "BatonCore", "BatonRuntime", "BatonModel", "BatonSMTP", "CBatonSystem", nioCore, nioPosix, deque, yams,
            histogram, arguments,
        ], swiftSettings: settings),
]

let beside: [Target] = [
    module("BatonTestKit", ["BatonCore", "BatonRuntime", "BatonModel", nioCore, nioPosix, deque]),
    tests("BatonCoreTests", ["BatonCore", "CBatonSystem"]),
    tests("BatonRuntimeTests", ["BatonRuntime", "BatonCore", nioCore, nioPosix]),
    tests("BatonModelTests", ["BatonModel", "BatonCore", nioCore]),
    tests("BatonSMTPTests", ["BatonSMTP", "BatonModel", "BatonCore", nioCore]),
    tests("BatonMailTests", ["BatonMail", "BatonModel", "BatonCore", nioCore]),
    tests("BatonPeerTests", ["BatonPeer", "BatonModel", "BatonCore", nioCore]),
    tests("BatonSpoolTests", ["BatonSpool", "BatonModel", "BatonRuntime", "BatonCore", nioCore]),
    tests("BatonQueueTests", ["BatonQueue", "BatonModel", "BatonRuntime", "BatonCore", nioCore, nioEmbedded]),
    tests("BatonDNSTests", ["BatonDNS", "BatonModel", "BatonRuntime", "BatonCore", nioCore, nioPosix]),
    tests("BatonHTTPClientTests", ["BatonHTTPClient", "BatonRuntime", "BatonCore"]),
    tests("BatonTLSTests", ["BatonTLS", nioCore, nioEmbedded]),
    tests("BatonControlPlaneTests", ["BatonControlPlane", "BatonHTTPClient", "BatonRuntime", "BatonCore", logging]),
    tests(
        "BatonIngressTests",
        [
            "BatonIngress", "BatonSMTP", "BatonMail", "BatonModel", "BatonRuntime", "BatonCore", nioCore, nioPosix,
            nioEmbedded,
        ]),
    tests(
        "BatonDeliveryTests",
        [
            "BatonDelivery", "BatonQueue", "BatonDNS", "BatonSMTP", "BatonMail", "BatonModel", "BatonRuntime",
            "BatonCore", nioCore, nioPosix, nioEmbedded, logging,
        ]),
    tests(
        "BatonClusterTests",
        [
            "BatonCluster", "BatonControlPlane", "BatonPeer", "BatonTLS", "BatonSpool", "BatonModel", "BatonRuntime", "BatonCore", nioCore,
            nioPosix, logging,
        ]),
    tests("ClusterSimulationTests", ["BatonCluster", "BatonSpool", "BatonModel", "BatonCore"]),
    tests(
        "BatonNodeTests",
        [
            "BatonNode", "baton", "BatonQueue", "BatonDelivery", "BatonModel", "BatonRuntime", "BatonCore", nioCore,
            nioPosix, logging, metrics, arguments,
        ]),
    tests("BatonBenchTests", ["baton-bench", "BatonCore", "BatonModel", nioCore, arguments]),
    tests("NodeIntegrationTests", ["baton", "baton-bench", "BatonCore", nioCore, nioPosix]),
    tests(
        "Fuzz",
        ["BatonSMTP", "BatonMail", "BatonPeer", "BatonSpool", "BatonDNS", "BatonModel", "BatonCore", nioCore]),
    tests("TidyTests", []),
]

// MARK: Building a part

/// `BATON_ONLY=BatonSpool,BatonSpoolTests swift test` builds and tests those targets and what they need, nothing else.
func selected(_ all: [Target], by names: String?) -> [Target] {
    guard let names, !names.isEmpty else { return all }
    var wanted = Set(names.split(separator: ",").map(String.init))
    var grown = true
    while grown {
        grown = false
        for target in all where wanted.contains(target.name) {
            for dependency in target.dependencies {
                if case .byNameItem(let name, _) = dependency, wanted.insert(name).inserted { grown = true }
            }
        }
    }
    return all.filter { wanted.contains($0.name) }
}

let package = Package(
    name: "baton",
    products: [],
    dependencies: [
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-metrics", from: "2.13.0"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.0", traits: []),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
    ],
    targets: selected(
        floor0 + floor1 + floor2 + floor3 + floor4 + floor5 + floor6 + floor7 + beside,
        by: Context.environment["BATON_ONLY"])
)
