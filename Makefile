# certctl. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
FUNCTIONS := api sweep worker responder agentpoll
ARCH ?= $(shell $(GO) env GOARCH)
TOOL := $(GO) tool -modfile=.ci/tools/go.mod

.DEFAULT_GOAL := help
.PHONY: help setup build functions run test test-go lint generate verify openapi-lint bench bench-quick fuzz clean crash-test

help: ## list the targets
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what tests and the demo need (Debian packages as root, npm packages)
	@.ci/setup

build: ## bin/certctl, bin/certctl-agent and dist/*/bootstrap
	$(BUILD) -o bin/certctl ./cmd/certctl
	$(BUILD) -o bin/certctl-agent ./cmd/certctl-agent
	@$(MAKE) --no-print-directory functions

functions: ## the five functions for Lambda and containers, dist/*/bootstrap
	@set -e; for f in $(FUNCTIONS); do echo "dist/$$f/bootstrap"; GOOS=linux GOARCH=$(ARCH) $(BUILD) -tags lambda.norpc -o dist/$$f/bootstrap ./functions/$$f; done

run: setup ## build, start, and show a certificate issued, deployed and seen served
	@$(BUILD) -o bin/certctl ./cmd/certctl && $(BUILD) -o bin/certctl-agent ./cmd/certctl-agent
	@exec infra/demo/run

test: setup lint openapi-lint build test-go ## everything that needs no cloud

test-go: ## Go tests with the race detector on a real Postgres, and the coverage floors
	@.ci/test-go

lint: ## gofmt, vet, staticcheck, gosec (high)
	@test -z "$$(gofmt -l bench cmd functions migrations shared web)" || { gofmt -l bench cmd functions migrations shared web; echo "run gofmt -w"; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) gosec -quiet -severity high -confidence medium -exclude-generated ./...

generate: ## the OpenAPI document
	$(GO) run ./cmd/certctl openapi > shared/api/openapi/openapi.json.new && mv shared/api/openapi/openapi.json.new shared/api/openapi/openapi.json

verify: ## what is generated is fresh
	@$(GO) run ./cmd/certctl openapi | cmp - shared/api/openapi/openapi.json || { echo "run make generate"; exit 1; }

openapi-lint: verify ## the OpenAPI document has no lint errors
	@cd web && npx --no-install redocly lint --config redocly.yaml ../shared/api/openapi/openapi.json

bench: ## the product beside limits and peers, whole (about a quarter of an hour; BENCH_FLAGS="-part crl,ocsp" or -huge)
	@$(GO) run ./bench/run $(BENCH_FLAGS)

bench-quick: ## every part of the benchmark, small
	@$(GO) run ./bench/run -quick $(BENCH_FLAGS)

fuzz: ## each fuzz target for FUZZ_TIME (60s)
	@.ci/fuzz $(or $(FUZZ_TIME),60s)

clean: ## remove what was built
	rm -rf bin dist

crash-test: ## kill the programs at every recorded step, cut their connections, end their database, and look for what is lost or doubled
	$(GO) test -tags crashtest -count=1 -timeout 30m -parallel 4 ./shared/crash ./bench/crash $(CRASH_FLAGS)
