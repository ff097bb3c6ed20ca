PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test slurm test-slurm lint bench clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Make .venv with the locked dependencies (a no-op when nothing changed)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"nanollama needs Python 3.11 or newer, this is {v[0]}.{v[1]}: make setup PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: setup  ## The main job, for real: calibrate, train, read the curve against the exact floor
	$(BIN)/python -m src.apps.demo

test: setup  ## The whole test suite
	$(BIN)/python -m pytest -n 2

slurm:  ## Install Slurm for its tests (as root, on Debian or Ubuntu); says so where it cannot
	@command -v slurmctld >/dev/null || timeout 300 sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge' \
	|| echo "Slurm cannot be installed here: its tests will be skipped"

test-slurm: setup slurm  ## Run the launcher against a real Slurm on this machine
	$(BIN)/python -m pytest -rs tests/nanollama/launcher/test_launcher_slurm.py

lint: setup  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## Every benchmark in its quick form
	@for script in benchmarks/[a-z]*.py; do printf '\n== %s --quick\n' $$script; $(BIN)/python $$script --quick || exit 1; done

clean:  ## Remove the environment and caches (never runs/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
