# Targets: make help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What the loop needs, and what the checks and tests need beside it.
LOOP   := $(VENV)/.loop
STAMP  := $(VENV)/.installed
# The versions of all packages that were tested together; `make constraints` writes them.
TESTED := deploy/constraints.txt
PIP     = $(BIN)/pip install --quiet --disable-pip-version-check --constraint $(TESTED)
ARGS   ?=
# quick: without the tests marked slow, and with a quarter of the property tests' examples. all: everything.
TIER   ?= quick
$(if $(filter quick all,$(TIER)),,$(error TIER is quick or all, not '$(TIER)'))
# Tests at a time. Much of their time is waiting for processes: two more than the cores of a small machine.
JOBS   ?= 4

# How long the property tests explore, and from which seed; without one, from a new one each time.
MINUTES ?= 10
SEED    ?=

TESTS = $(if $(filter quick,$(TIER)),MILLRACE_TEST_QUICK=1) \
  $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

.PHONY: help install constraints demo test check warm unit explore crash soak coverage wheel wheel-test bench clean
help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

$(LOOP): pyproject.toml client/pyproject.toml $(TESTED)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
	  "Millrace needs Python 3.11 to 3.13, and this is %d.%d; name another: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable . --editable ./client
	@touch $@

$(STAMP): $(LOOP)
	$(PIP) --editable '.[dev,bench]' --editable ./client
	@touch $@

install: $(LOOP) ## create the environment and install the loop into it

constraints:     ## write deploy/constraints.txt: what pip finds newest for everything, in a new environment
	@set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(PYTHON) -m venv $$away; \
	$$away/bin/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]' --editable ./client; \
	$$away/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > $(TESTED)

demo: $(LOOP)    ## run the whole loop; pass flags as ARGS='--seconds 120 --report report.json'
	$(BIN)/millrace demo $(ARGS)

check: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

warm: $(STAMP)   ## compile what tests call; half a minute in a fresh clone
	$(BIN)/python -m tests.repository.warm

unit: warm       ## the tests alone, JOBS=4 at a time; pass flags as ARGS='-k join'
	$(TESTS)

test: $(STAMP)   ## linters, and the quick tests: the others, too, with TIER=all
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target check warm
	$(TESTS)

explore: $(STAMP) ## property tests with new examples for MINUTES=10; a failure prints its SEED to repeat it
	@end=$$(( $$(date +%s) + 60 * $(MINUTES) )); \
	while seed=$(or $(SEED),$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')); echo "seed $$seed"; do \
	  MILLRACE_EXPLORE=1 $(BIN)/python -m pytest -q -x -m hypothesis --hypothesis-seed=$$seed $(ARGS) \
	    || { echo "to repeat it: make explore SEED=$$seed ARGS='$(ARGS)'"; exit 1; }; \
	  [ -z "$(SEED)" ] && [ "$$(date +%s)" -lt $$end ] || break; \
	done

# Faults by kind or name, with commas between, as in FAULTS='kill,Redis emptied'; all: nothing.
FAULTS ?=
OUT    ?= out/crash

crash: $(STAMP)  ## hours: a loop that is killed, stopped and cut off; MINUTES=20 FAULTS=kill OUT=out/crash SEED=7, goes on
	$(BIN)/python -m tests.crash $(OUT) --faults '$(FAULTS)' --seed $(or $(SEED),0) $(ARGS) \
	  $(if $(filter command environment,$(firstword $(origin MINUTES))),--minutes $(MINUTES))

# How long the soak takes, of which each loop has half. The first half hour of each does not count.
HOURS  ?= 2
soak: OUT = out/soak

soak: $(STAMP)   ## hours: a small shop, then a large demo, HOURS=2 together: what grows, drifts, is refused; OUT=out/soak
	$(BIN)/millrace dev experiment soak --out $(OUT) --hours $(HOURS)

coverage: warm   ## lines that the tests within one process run, by room; some of them with ARGS='tests/stream'
	@away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(BIN)/pip install --quiet --disable-pip-version-check --target $$away 'coverage>=7.6,<8'; \
	PYTHONPATH=$$away $(BIN)/python -m tests.repository.line_coverage -q -m 'not services' $(ARGS)

wheel: $(STAMP)  ## build the wheel into dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

# An exposure log that wheel-test replays, and its schema.
LOG    ?= $(wildcard $(MILLRACE_TEST_LOG)/*.parquet)
SCHEMA ?= examples/kuairand/schema.toml

wheel-test:      ## the wheel in a new environment of PYTHON=python3.13, in an empty folder: a replay of LOG, a demo
	@set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(PYTHON) -m venv $$away/env; \
	$$away/env/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $$away .; \
	$$away/env/bin/pip install --quiet --disable-pip-version-check $$away/*.whl; \
	log='$(abspath $(LOG))'; schema='$(abspath $(SCHEMA))'; mkdir $$away/empty; cd $$away/empty; \
	../env/bin/python --version; \
	[ -z "$$log" ] || ../env/bin/millrace log replay "$$log" --schema "$$schema" --out replay; \
	../env/bin/millrace demo --seconds 20 --page-port 0

bench: $(STAMP)  ## one benchmark; pass its name and folder as ARGS='stream --out out/bench'
	$(BIN)/millrace dev bench $(ARGS)

clean:           ## remove the environment and what was built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
