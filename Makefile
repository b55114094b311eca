# Builds, shows and tests Baton on Debian 12 with Swift 6.3, git and make; what else is needed is apt-installed when it is missing.

# What the build links against.
BUILD_PACKAGES = liblz4-dev libunbound-dev libidn2-dev libcurl4-openssl-dev libssl-dev pkg-config
# What `make run` shows the first steps with.
RUN_PACKAGES = swaks
# What the integration tests speak with; util-linux has unshare.
TEST_PACKAGES = swaks postfix nsd etcd-server openssl curl python3 strace iproute2 nftables util-linux

BIN = .build/release

.PHONY: run test integration build lint packages-build packages-test cluster faults compare clean

run: build
	@.ci/packages $(RUN_PACKAGES)
	@cluster/quickstart $(BIN)

build: packages-build
	swift build -c release --product baton
	swift build -c release --product baton-bench

# A program of others that is missing fails its tests here (BATON_REQUIRE_PEERS): everything can be installed.
PEERS = BATON_REQUIRE_PEERS=1 BATON_PEERS="$(CURDIR)/.build/peers"

test: packages-test
	swift build --build-tests
	$(PEERS) swift test --skip-build --no-parallel

# The real binary among real clients and servers, alone.
integration: packages-test
	swift build --build-tests
	$(PEERS) swift test --skip-build --no-parallel --filter NodeIntegrationTests

packages-test: packages-build
	@.ci/packages $(TEST_PACKAGES)
	@.ci/peers .build/peers

lint:
	swift format lint --strict -r Sources Tests

packages-build:
	@.ci/packages $(BUILD_PACKAGES)

# What the demonstration of a cluster and the fault suite need.
CLUSTER_PACKAGES = etcd-server openssl curl python3 iproute2 nftables

# Three nodes, etcd and a sink on this machine; one node is killed with its disk. Needs root, for network namespaces.
cluster: build
	@.ci/packages $(CLUSTER_PACKAGES)
	@benchmarks/faults --demo

# Every kind of fault once; benchmarks/faults --help has the rest.
faults: build
	@.ci/packages $(CLUSTER_PACKAGES)
	@benchmarks/faults

# Side by side with Postfix, which has to be installed (`make test` does that).
compare: build
	benchmarks/compare

clean:
	swift package clean
