# `make` prints the targets. Everything here works on a bare Debian 12 machine with
# Go: what else is needed is installed by the step that needs it.

SHELL     := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# hashicorpmetrics: raft, serf and memberlist agree on one metrics library only with
# it. nosystemd: the plugin helper library would otherwise take its socket from systemd.
TAGS    := hashicorpmetrics,nosystemd
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)

module  := $(shell sed -n 's/^module //p' go.mod)
ldflags  = -s -w -X $(module)/internal/version.Version=$(VERSION) -X $(module)/internal/version.Commit=$(COMMIT)
go_test := go test -tags $(TAGS) -timeout 30m
# The lab's stories are run by scripts/test alone: they need machines.
packages = $(shell go list -tags $(TAGS) ./... | grep -v '^$(module)/test\(/\|$$\)')
# Packages whose tests run in a bubble of testing/synctest.
bubbled  = $(shell grep -rl --include='*_test.go' '"testing/synctest"' . | sed 's|^\.\(.*\)/[^/]*$$|$(module)\1|' | sort -u)
# Those that take longest begin first: the other processor then has the rest to do meanwhile.
longest  = %/internal/scenario %/replicate %/proxy
ordered  = $(filter $(longest),$(1)) $(filter-out $(longest),$(1))
FUZZTIME ?= 2s
# Simulated clusters make garbage, and a tenth to a quarter of their time was its collection.
race unit: export GOGC ?= 400
# What the native tests of the proxy run: servers, and clients that nobody here wrote.
# And what looks at the packages and at the alerts: rpm, promtool.
NATIVES  := rpm prometheus redis-server redis-tools postgresql-15 nginx-light wrk apache2-utils hey nghttp2-client curl python3-websockets python3-grpcio
# And the shells whose completion is tried.
NATIVES  += bash zsh fish
NODES    ?= 3
# Where it is built and packed. A story that needs packages of other versions has them elsewhere: scripts/lab installs what is in bin/.
BIN  := bin
DIST := dist

.PHONY: help
help: ## print the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: build
build: ## static flockd and flockctl, into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -ldflags '$(ldflags)' -o $(BIN)/ ./cmd/...

.PHONY: man
man: build ## manual pages, into bin/man: man bin/man/flockctl.1
	@mkdir -p $(BIN)/man
	$(BIN)/flockctl __man > $(BIN)/man/flockctl.1
	$(BIN)/flockd __man > $(BIN)/man/flockd.8

# What packs is a program of its own, whose dependencies are none of ours: no go.mod names it.
# Newer ones need modules that the module proxy did not hand out when this was chosen.
NFPM := v2.43.0

.PHONY: package
package: man bin/tools/nfpm-$(NFPM) ## .deb and .rpm for this machine's architecture, into dist/
	BIN='$(BIN)' DIST='$(DIST)' scripts/packaging/build '$(VERSION)' bin/tools/nfpm-$(NFPM)

bin/tools/nfpm-$(NFPM):
	@mkdir -p bin/tools
	GOBIN=$(CURDIR)/bin/tools go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM)
	mv bin/tools/nfpm $@

# ---- without machines

.PHONY: check
check: fmt vet staticcheck race ## the quick loop: formatting, vet, staticcheck, short tests with the race detector

.PHONY: fmt
fmt:
	@out=$$(gofmt -l .); \
	if [ -n "$$out" ]; then echo "not formatted (run gofmt -w):"; echo "$$out"; exit 1; fi

.PHONY: vet
vet:
	go vet -tags $(TAGS) ./...

.PHONY: staticcheck
staticcheck: bin/tools/staticcheck
	bin/tools/staticcheck -tags $(TAGS) ./...

bin/tools/staticcheck: tools/go.mod tools/go.sum
	@mkdir -p bin/tools
	go -C tools build -o ../bin/tools/staticcheck honnef.co/go/tools/cmd/staticcheck
	@touch $@

.PHONY: race
# Two goroutines of one bubble that read elapsed timers at the same moment break the
# race detector's own state: SIGSEGV or "CHECK failed" in __tsan (golang/go#78156).
# On one processor there is no same moment; races are still found, for the detector
# looks for a missing order, not for a collision.
race:
	@tools/need gcc libc6-dev
	$(go_test) -race -short $(filter-out $(bubbled),$(packages))
	$(go_test) -race -short -cpu 1 $(call ordered,$(bubbled))

# The first seed of random histories, said also when all pass: a test's log is not printed then.
.PHONY: unit
unit: export FLOCKER_SEEDS ?= 1
unit: ## all tests without machines: unit, simulation, scenarios, stories on the fake
	@echo "random histories begin with FLOCKER_SEEDS=$(FLOCKER_SEEDS)"
	$(go_test) -skip '^TestNative' $(call ordered,$(packages))

.PHONY: native
native: natives package ## real servers that move under real clients behind the proxy, the packages, the alerts, the shells, a store of S3, on this machine
	FLOCKER_NATIVE=1 $(go_test) -count=1 -v -run '^TestNative' ./scripts/packaging ./internal/daemon ./proxy ./cmd/flockctl
	FLOCKER_NATIVE=1 PATH="$(CURDIR)/bin:$$PATH" $(go_test) -count=1 -v -run '^TestS3' ./internal/backup ./cmd/flockctl

.PHONY: natives
natives: ## install the programs that the native tests run
	@tools/need $(NATIVES)
	@test -x bin/versitygw || GOBIN="$(CURDIR)/bin" go install github.com/versity/versitygw/cmd/versitygw@v1.8.0

.PHONY: histories
histories: export FLOCKER_HISTORIES ?= 4
histories: export FLOCKER_SEEDS := $(or $(FLOCKER_SEEDS),$(shell date +%s%N))
histories: ## FLOCKER_HISTORIES (4) times as many random histories as unit has, that nobody has seen yet; with FLOCKER_SEEDS=N those of a run before
	@echo "random histories begin with FLOCKER_SEEDS=$(FLOCKER_SEEDS)"
	$(go_test) ./internal/sim ./internal/scenario ./replicate -run 'TestOneWriter|TestStorms|TestLinearizable|TestHistories'

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (2s)
	@TAGS=$(TAGS) tools/fuzz $(FUZZTIME)

.PHONY: bench
bench: ## Go benchmarks, then flocker beside other ways to replicate, on the lab; the result is recorded in docs/BENCHMARKS.md
	go test -tags $(TAGS) -run '^$$' -bench . -benchmem $(packages)
	scripts/bench proxy
	scripts/bench

# ---- with the lab: real virtual machines, OpenZFS and Docker

.PHONY: test
test: natives check unit native fuzz ## everything a change must pass: check, unit, native, fuzz, one lab story per capability; about an hour on two cores
	scripts/test core

.PHONY: test-full
test-full: natives check unit native fuzz ## every story; its result is recorded in docs/TESTING.md
	scripts/test full

.PHONY: demo
demo: ## the main job on three real nodes, told step by step
	scripts/demo

.PHONY: lab-up
lab-up: build ## boot NODES (3) nodes and install flockd into them
	scripts/lab up $(NODES)

.PHONY: lab-down
lab-down: ## stop the nodes
	scripts/lab down

.PHONY: clean
clean: ## remove bin/ and dist/ (the lab's cache stays)
	rm -rf bin dist
