# Each target does its own set-up: a virtual environment in .venv, made once and again when the pins change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench docs clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evener needs Python >= 3.11; set PYTHON=...")'
	@echo "setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 2>$(VENV)/pip.log || \
		{ cat $(VENV)/pip.log >&2; exit 1; }
	@touch $@

demo: $(STAMP)  ## train handwritten digits with 1 ps and 2 workers, and watch it
	@$(BIN)/evener train mnist --ps 1 --workers 2

test: $(STAMP)  ## the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2

check: $(STAMP)  ## lint, types and the fast tests: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow" -n 2

bench: $(STAMP)  ## speed, as ratios within one run
	$(BIN)/python benchmarks/steps.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
