# All commands for people. Each target installs what it needs and reports it.
PYTHON  := .venv/bin/python
# The environment is created with the standard library only.
ANY_PYTHON := python3
PYTEST  := .venv/bin/pytest
# What boots guests and clusters spends most of its time waiting, so SIDE_BY_SIDE files of it run at a time (a file's tests
# share guests, and stay together).
SIDE_BY_SIDE ?= 3
# On a machine shared with others a test can miss a deadline: what failed is run once more, by itself, and only then is it
# a failure. Tests that passed only then are listed at the end of `make test`. $(1): which tests; $(2): pytest's options.
steady = $(PYTHON) -m tests.steady run $(1) -- $(2)
side_by_side = -n $(SIDE_BY_SIDE) --dist loadfile
export HYPERLET_CACHE ?= $(HOME)/.cache/hyperlet

.PHONY: help up down status test check unit node-test e2e e2e-unproven bench bench-cni chaos manifests protos lint types images clean

help:            ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up:              ## start a two-node cluster with hyperlet and an example VM
	@$(ANY_PYTHON) -m deploy.hyperlet up

down:            ## stop everything and remove it
	@$(ANY_PYTHON) -m deploy.hyperlet down

status: .venv/ready ## show what is running
	@$(PYTHON) -m cluster status

# The node tests leave a processor half idle, and Kubernetes takes minutes to build: it is built meanwhile, with what they
# leave. Whatever goes wrong there comes up again in e2e, which builds what is missing and says so.
test: .venv/ready ## everything there is to test
	@$(PYTHON) -m tests.steady begin
	@$(MAKE) --no-print-directory check
	@mkdir -p $(HYPERLET_CACHE); echo "building for e2e meanwhile ($(HYPERLET_CACHE)/ahead.log)"; \
	  nice -n 19 sh -c '$(PYTHON) -m cluster build && $(PYTHON) -m images build && $(PYTHON) -m cluster build dns extras runc' >$(HYPERLET_CACHE)/ahead.log 2>&1 & ahead=$$!; \
	  $(MAKE) --no-print-directory node-test; status=$$?; wait $$ahead || true; exit $$status
	@$(MAKE) --no-print-directory e2e
	@$(PYTHON) -m tests.steady report

check: lint types unit ## style, types, unit tests

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/lint-imports

types: .venv/ready
	.venv/bin/mypy

unit: .venv/ready
	@$(PYTHON) -m cluster deps --tests
	$(call steady,tests/unit tests/golden,-n auto)

node-test: .venv/ready ## on real libvirt, QEMU and network namespaces of this machine (root)
	@$(PYTHON) -m cluster deps --tests
	@$(PYTHON) -m images build guests
	$(call steady,tests/node,$(side_by_side))

e2e: .venv/ready ## on the real cluster (brings it up if it is not)
	@$(PYTHON) -m cluster deps --tests
	@$(PYTHON) -m images build
	@$(PYTHON) -m deploy.hyperlet up
	@$(PYTHON) -m cluster dns
	$(call steady,tests/e2e,-m "not alone and not unproven" $(side_by_side))
	$(call steady,tests/e2e,-m "alone and not unproven")

e2e-unproven: .venv/ready ## the e2e tests that have not been seen passing yet (tests/e2e/unproven.txt)
	@$(PYTHON) -m images build
	@$(PYTHON) -m deploy.hyperlet up
	@$(PYTHON) -m cluster dns
	$(PYTEST) tests/e2e -m unproven -v

bench: .venv/ready ## measure; prints tables, writes JSON to .run/bench/
	@$(PYTHON) -m images build
	@$(PYTHON) -m deploy.hyperlet up
	$(PYTHON) -m bench all

chaos: .venv/ready ## 200 random deletions and faults on one VM (SEED=N repeats one): never two QEMUs of it
	@$(PYTHON) -m deploy.hyperlet up
	$(PYTHON) -m bench.chaos $(if $(SEED),--seed $(SEED))

bench-cni: .venv/ready ## the CNI plugins against Debian's containernetworking-plugins (root)
	$(PYTHON) -m bench.cni

images: .venv/ready ## build the container images
	@$(PYTHON) -m images build

manifests: .venv/ready ## regenerate the CRDs from api/
	$(PYTHON) -m api.schema.crd

protos: .venv/ready ## regenerate the Python beside each .proto
	$(PYTHON) -m protos.generate

.venv/ready: pyproject.toml images/constraints.txt
	@$(ANY_PYTHON) -m cluster venv
	@touch $@

clean: down      ## down, and delete the builds
	rm -rf .venv .run $(HYPERLET_CACHE)
