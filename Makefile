# Every target does its own set-up: it needs make and Python 3.11 or newer, nothing else.
# PYTHON=/path/to/python chooses the interpreter; ARGS="..." is handed on to the program that a target runs.
# simulate: SEED, EVENTS and SCRIPT say what is played; a seed that fails is shrunk and printed with its command.
# EXTRAS=dev leaves out torch: the tests of the split runtime are skipped then.
# install: PREFIX, ETC and UNITS say where the program, its configuration and the systemd units go.
# fuzz: TARGET and SECONDS; ARGS=--keep adds what is found to the corpus.

VENV := .venv
TARGET := all
SECONDS := 60
EXTRAS := dev,llm,serve
PREFIX := /opt/cosched
ETC := /etc/cosched
UNITS := /etc/systemd/system
BIN := $(VENV)/bin
PACKAGES := cosched solvers telemetry
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
IS_USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq -c constraints.txt
# What the compiled functions are made of: when it changes, set-up compiles again, so that no run has to.
KERNELS := $(shell find solvers cosched/core cosched/fluid cosched/warmup.py -name '*.py' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo test simulate fuzz lint format bench install clean
.DELETE_ON_ERROR:

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.ready ## create .venv with the pinned packages and compile the kernels

demo: setup ## a live daemon on the sample trace, an LLM split over a local Ray, the replay with every policy, a report
	@$(BIN)/cosched demo $(ARGS)

test: setup ## run all tests
	@$(BIN)/python -m pytest $(ARGS)

simulate: setup ## a daemon in virtual time against a seeded adversary: SEED=1 EVENTS=1000000, or SCRIPT=out/simulate-17.json
	@$(BIN)/python tests/simulation/run.py --seed $(or $(SEED),1) --events $(or $(EVENTS),1000000) \
	  $(if $(SCRIPT),--script $(SCRIPT)) $(ARGS)

fuzz: setup ## hunt for inputs that break TARGET (tests/fuzz) for SECONDS, guided by coverage; TARGET=all for every one
	@for target in $(if $(filter all,$(TARGET)),bus control decisions host captures state config problems,$(TARGET)); do \
	  $(BIN)/python tests/fuzz/explore.py $$target --seconds $(SECONDS) $(ARGS) || exit 1; \
	done

lint: $(VENV)/.installed ## check style, types and layering
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## put the code into its form
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup ## measure what the README states
	@$(BIN)/cosched bench $(ARGS)

install: ## as root: put program, configuration, keys and systemd units in their places (systemd/README.md)
	@$(MAKE) --no-print-directory VENV=$(PREFIX) $(PREFIX)/.created
	@$(PREFIX)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt setuptools
	@$(PREFIX)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-build-isolation .
	@echo 'compiling the kernels (some minutes, once)'
	@NUMBA_CACHE_DIR=$(PREFIX)/cache $(PREFIX)/bin/python -m cosched.warmup
	@install -d -m 755 $(ETC) $(ETC)/keys $(UNITS)
	@test -e $(ETC)/cosched.toml || echo '# What differs from the defaults: cosched config show' > $(ETC)/cosched.toml
	@test -e $(ETC)/keys/daemon.key || $(PREFIX)/bin/cosched keys new daemon --keys $(ETC)/keys
	@sh systemd/install.sh '$(PREFIX)' '$(ETC)' '$(UNITS)'
	@if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo 'installed; next: systemctl enable --now cosched'

clean: ## remove .venv and everything else that is made here
	@rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find $(PACKAGES) tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.created:
	@for python in $(PYTHONS); do \
	  if "$$python" -c '$(IS_USABLE)' >/dev/null 2>&1; then \
	    echo "creating $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV) && touch $@; exit; \
	  fi; \
	done; \
	echo "make: no Python 3.11 or newer with venv among: $(PYTHONS)" >&2; \
	echo "make: install one (Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python" >&2; \
	exit 1

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing the packages of constraints.txt into $(VENV) (2 minutes, 2.4 GB)"
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.ready: $(VENV)/.installed $(KERNELS)
	@if [ -f cosched/warmup.py ]; then echo "compiling the kernels (2 minutes, once)"; $(BIN)/python -m cosched.warmup; fi
	@touch $@
