# Builds, shows and tests Baton on Debian 12 with Swift 6.3, git and make; what else is needed is apt-installed when it is missing.

# What the build links against.
BUILD_PACKAGES = liblz4-dev libunbound-dev libidn2-dev pkg-config
# What `make run` shows the first steps with.
RUN_PACKAGES = swaks
# What the integration tests speak with.
TEST_PACKAGES = swaks postfix nsd curl python3 strace iproute2

BIN = .build/release

.PHONY: run test integration build lint packages-build compare clean

run: build
	@.ci/packages $(RUN_PACKAGES)
	@cluster/quickstart $(BIN)

build: packages-build
	swift build -c release --product baton
	swift build -c release --product baton-bench

test: packages-build
	@.ci/packages $(TEST_PACKAGES)
	swift build --build-tests
	swift test --skip-build --no-parallel --skip NodeIntegrationTests

# The real binary among real clients and servers. Not all of it passes yet, so it is not part of `make test`.
integration: packages-build
	@.ci/packages $(TEST_PACKAGES)
	@.ci/peers .build/peers
	swift build --build-tests
	BATON_PEERS="$(CURDIR)/.build/peers" swift test --skip-build --filter NodeIntegrationTests

lint:
	swift format lint --strict -r Sources Tests

packages-build:
	@.ci/packages $(BUILD_PACKAGES)

# Side by side with Postfix, which has to be installed (`make test` does that).
compare: build
	benchmarks/compare

clean:
	swift package clean
