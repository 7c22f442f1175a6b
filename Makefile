# Everything sets itself up: a virtual environment in .venv with the locked requirements, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo
MINUTES ?= 15
SEED ?= 0

.PHONY: setup check test test-slow keys demo bench clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow"

keys: setup
	$(BIN)/python -m isoflop.keys

demo: setup
	$(BIN)/isoflop demo --out $(OUT) --minutes $(MINUTES) --seed $(SEED)

bench: setup
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/bootstrap_fit.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
