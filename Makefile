# Needs Python 3.11 or later with venv (Debian, Ubuntu: apt install python3-venv), nothing else.
#   make test ARGS="-k index"   hands arguments to the tool
#   make PYTHON=python3.12 ...  chooses the interpreter .venv is made with

PYTHON ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
RUN := $(VENV)/installed
DEV := $(VENV)/installed-dev

# Rooms without sockets, and the tests of documents.
FAST_TESTS := $(addprefix tests/router/,config index policies scheduling telemetry http/test_http_paths.py) \
  tests/test_docs.py tests/loadgen/results/test_results_schema.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help check demo test e2e benchmarks engines bench report lint types format docs clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(RUN) ## the gateway in front of simulated replicas, beside round robin
	$(BIN)/python -m loadgen.demo $(ARGS)

check: lint types ## before every commit, within a minute: style, types, imports, docs, fast tests
	$(BIN)/python -m pytest -n auto --dist loadfile $(FAST_TESTS) $(ARGS)

test: $(DEV) ## all tests but e2e
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not e2e" $(ARGS)

e2e: $(DEV) ## the tests with real vLLM engines, which are installed where missing
	$(BIN)/python -m bench.vllm
	$(BIN)/python -m pytest -m e2e -rs $(ARGS) tests/e2e

# An environment for each: what they need does not go together, and torch is large.
benchmarks: $(DEV) ## aiperf and guidellm as clients of the gateway, installed where missing (3 GB)
	@set -eu; for name in aiperf guidellm; do \
	  [ ! -x .venv-$$name/bin/$$name ] || continue; \
	  $(BIN)/python -m venv .venv-$$name; \
	  .venv-$$name/bin/python -m pip install -qq --disable-pip-version-check $$name; \
	done
	$(BIN)/python -m pytest -rs tests/loadgen/live/test_live_benchmarks.py $(ARGS)

engines: $(DEV) ## policies compared on two real vLLM engines
	$(BIN)/python -m bench.vllm
	$(BIN)/python -m bench.two_engines $(ARGS)

bench: $(DEV) ## what the hot path costs
	$(BIN)/python -m bench $(ARGS)

report: $(RUN) ## policies compared on the workloads
	$(BIN)/warmroute-loadgen report $(ARGS)

lint: $(DEV) ## style, common mistakes, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV) ## static types
	$(BIN)/mypy

format: $(DEV) ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(RUN) ## write the pages of docs/reference that are made from code anew
	$(BIN)/python -m router.config docs/reference/configuration.md
	$(BIN)/python -m router.telemetry.metrics_page > docs/reference/metrics.md

clean: ## remove .venv, .venv-*, caches and out/
	rm -rf $(VENV) .venv-vllm .venv-envoy .venv-envoy.lock .venv-aiperf .venv-guidellm
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One after the other, so that make -j never runs two pips in one environment.
$(DEV): $(RUN)
	@echo "installing what tests and checks need into $(VENV)"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# The first interpreter that is new enough and can make an environment. Asked by running it: a
# version manager's stand-in may be on the path without anything behind it.
$(RUN): pyproject.toml
	@set -eu; \
	new="import sys; sys.exit(sys.version_info < (3, 11))"; found=; made=; \
	if $(BIN)/python -m pip --version >/dev/null 2>&1 && $(BIN)/python -c "$$new"; then made=yes; fi; \
	for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	  [ -z "$$made" ] || break; \
	  "$$python" -c "$$new" >/dev/null 2>&1 || continue; \
	  found=$${found:-$$python}; \
	  for module in venv virtualenv; do \
	    if [ $$module = venv ]; then needs="venv, ensurepip"; else needs=virtualenv; fi; \
	    "$$python" -c "import $$needs" >/dev/null 2>&1 || continue; \
	    echo "making $(VENV) with $$python -m $$module"; \
	    rm -rf $(VENV); \
	    "$$python" -m $$module $(VENV); \
	    made=yes; break; \
	  done; \
	done; \
	if [ -z "$$made" ] && [ -n "$$found" ]; then \
	  echo "$$found cannot make virtual environments." >&2; \
	  echo "Debian and Ubuntu: sudo apt-get install python3-venv (for python3.12: python3.12-venv)." >&2; \
	  echo "Elsewhere: $$found -m pip install --user virtualenv" >&2; \
	  exit 1; \
	fi; \
	if [ -z "$$made" ]; then \
	  echo "Python 3.11 or later is needed, and $(or $(PYTHON),none) is not that; name one: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi
	@echo "installing warmroute into $(VENV)"
	@$(PIP_INSTALL) --editable .
	@touch $@
