# Each target does its own set-up: a virtual environment in .venv, made once and again when the pins change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-ray check fuzz chaos bench bench-peers bench-gpu docs clean
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
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

check: $(STAMP)  ## lint, types and the fast tests: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	QUICK=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist worksteal

test-ray: $(STAMP)  ## every test of runs on a Ray cluster, of three nodes on this machine: about ten minutes
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'ray[train]==2.60.0' \
		2>$(VENV)/pip.log || { cat $(VENV)/pip.log >&2; exit 1; }
	RAY=1 $(BIN)/python -m pytest -q tests/on_ray

chaos: $(STAMP)  ## 200 random schedules of faults over short runs: about half an hour; CHAOS="17 18" plays those seeds
	$(BIN)/python tests/system/chaos_soak.py $(CHAOS)

bench: $(STAMP)  ## speed beside plain PyTorch, as ratios within one run; nothing is written
	$(BIN)/python benchmarks/peers.py --only "MLP 500"
	$(BIN)/python benchmarks/own_loop.py
	$(BIN)/python benchmarks/policies.py

PEERS := .venv-peers
$(PEERS)/.installed: benchmarks/peers/requirements.txt constraints.txt
	@echo "setting up $(PEERS) ..."
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r benchmarks/peers/requirements.txt 2>$(PEERS)/pip.log || { cat $(PEERS)/pip.log >&2; exit 1; }
	@touch $@

bench-peers: $(STAMP) $(PEERS)/.installed  ## beside TensorFlow, Ray and PyTorch's own, 15 minutes; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/peers.py --python $(PEERS)/bin/python $(or $(BENCH),--write)

N ?= 1000000
bench-gpu:  ## on a machine with a GPU, builds nothing: the tests that need one, then CIFAR-10's step beside a plain loop
	PYTHONPATH=src $(PYTHON) -m pytest -q tests/gpu
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

fuzz: $(STAMP)  ## mutated frames through codec, servers and ports, and files through readers: N=1000000 [SEED=...]
	$(BIN)/python tests/properties/fuzzing.py --n $(N) $(if $(SEED),--seed $(SEED))
	$(BIN)/python tests/properties/fuzzing_files.py --n $$(($(N) / 10)) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
