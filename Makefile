# Bare `make` lists the targets. Each brings what it needs; run twice, nothing is done twice.

.DEFAULT_GOAL := help
.PHONY: help build demo serve test test-nightly fuzz bench lint format lock clean
MAKEFLAGS += --no-print-directory

# The first Python >= 3.11 that runs.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
UV := $(BIN)/uv
SOURCES := $(wildcard ota_hook/*.pyx ota_hook/*.pxd ota_hook/exhook/*.pyx) protos/exhook.proto setup.py pyproject.toml

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

build: .venv/.built ## set up .venv and compile; leaves .venv/bin/ota-hook

demo: build ## a whole fleet upgrading on this machine (DEMO_ARGS="--once --json" for one summary)
	@$(BIN)/ota-hook demo $(DEMO_ARGS)

serve: build ## the service on its defaults (SERVE_ARGS="--standin" brings a broker)
	@$(BIN)/ota-hook serve $(SERVE_ARGS)

test: build ## every test that a fresh machine can run, two at a time (TEST_ARGS="-k name" for some, one by one)
	@$(if $(TEST_ARGS),$(BIN)/python -m pytest $(TEST_ARGS),scripts/test.sh)

test-nightly: build ## the property tests with 100,000 examples each; takes an hour
	@HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest tests/property --timeout=0 $(TEST_ARGS)

fuzz: build ## libFuzzer against the codec (FUZZ_RUNS=5000000)
	@tests/fuzz/run.sh $(FUZZ_RUNS)

bench: build ## the benchmarks, some fifteen minutes on an idle machine; writes benchmarks/results (benchmarks/README.md)
	@for script in session_cost matching exhook_call check growth change_live fleet children publish push gateway; do \
		$(BIN)/python -m benchmarks.$$script > benchmarks/results/$$script.new || { cat benchmarks/results/$$script.new; exit 1; }; \
		mv benchmarks/results/$$script.new benchmarks/results/$$script.txt; cat benchmarks/results/$$script.txt; echo; \
	done

lint: build ## ruff, mypy --strict, stubtest, cython-lint, import-linter, codespell
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict
	@$(BIN)/python -m mypy.stubtest ota_hook._device_set ota_hook._matcher ota_hook._packed ota_hook._versions ota_hook.exhook._codec ota_hook.exhook._session --concise
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint ota_hook
	@$(BIN)/lint-imports
	@$(BIN)/codespell

format: build ## ruff's formatter and its safe fixes
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

lock: .venv/.uv ## resolve the ranges of pyproject.toml into requirements.lock anew
	@$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --extra standin --group build --group test --group lint \
		pyproject.toml -o requirements.lock
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --constraints requirements.lock --extra standin --group build \
		pyproject.toml -o requirements.runtime.lock

clean: ## remove the environment and what the build made; your data stays
	@rm -rf .venv build *.egg-info ota_hook/*.so ota_hook/*.c ota_hook/exhook/*.so ota_hook/exhook/*.c \
		ota_hook/exhook/exhook_pb2.*

.venv/.uv: scripts/system-packages.sh
	@test -n "$(PYTHON)" || { echo "ota-hook needs Python 3.11 or later; run: apt-get install python3" >&2; exit 1; }
	@scripts/system-packages.sh $(PYTHON)
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	@touch $@

.venv/.installed: .venv/.uv requirements.lock
	@echo "installing the locked dependencies"
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@touch $@

.venv/.built: .venv/.installed $(SOURCES)
	@echo "building ota-hook"
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q ota_hook admin_api
	@touch $@
