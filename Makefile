# Every target makes its own environment (.venv) when there is none.
# Choose another interpreter with PYTHON=..., another folder with VENV=...
# For the CPU-only build of torch: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NDIF_VENV ?= .venv-ndif
EXTRAS := accelerate,hub,netcdf,dev
STORES ?= stores
OUT ?= build/tiny-refuser
WORKERS ?= 2
# one thread a process: together they would fight for the processor
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help env demo test test-gpu test-kill test-slow test-long test-ndif ndif-env check format types docs golden bench train \
	sample wheel constraints clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

env: $(STAMP)  ## make the environment

demo: $(STAMP)  ## the whole story on the embedded model; leaves runs and demo.html in stores/
	$(BIN)/refusal-nn demo --stores $(STORES)

test: $(STAMP)  ## minutes: every test, of the long ones a sample; two at a time (WORKERS=2)
	$(PYTEST) -n $(WORKERS) --dist loadscope $(ARGS)

test-long: $(STAMP)  ## hours: the long tests in full, results in tests/long (SHARD=1/4, FORCE=1)
	BIN=$(BIN) NDIF_VENV=$(NDIF_VENV) SHARD=$(SHARD) FORCE=$(FORCE) tests/long/run $(ARGS)

test-kill: $(STAMP)  ## of the long tests, in full: kill -9 at random moments, then resume
	$(PYTEST) --full -m "long and not ndif" -k kill $(ARGS)

test-slow: $(STAMP)  ## of the long tests, in full: those that kill nothing and need no server
	$(PYTEST) --full -m "long and not ndif" -k "not kill" $(ARGS)

test-gpu: $(STAMP)  ## the tests that need a CUDA device (skipped with the reason where there is none)
	$(BIN)/python -m pytest -m gpu $(ARGS)

ndif-env:  ## install an NDIF server for the tests into NDIF_VENV (default .venv-ndif), and redis
	@test -n "$(PYTHON)" || { echo "no python3 found; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	PYTHON=$(PYTHON) tests/ndif/install $(NDIF_VENV)

test-ndif: $(STAMP) ndif-env  ## a sample against a real NDIF server on loopback (ARGS=--full: all)
	$(BIN)/python -m tests.ndif.stack --venv $(NDIF_VENV) -- \
		$(BIN)/python -m pytest -m ndif tests/ndif $(ARGS)

check: $(STAMP)  ## lint, format, types (cli/ too) and docs
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	BIN=$(BIN) .ci/types
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

format: $(STAMP)  ## rewrite the sources as `make check` wants them
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

types: $(STAMP)  ## type check alone
	BIN=$(BIN) .ci/types

docs: $(STAMP)  ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

golden: $(STAMP)  ## remake the recorded help texts in tests/cli/help
	$(BIN)/python tests/cli/test_help.py

bench: $(STAMP)  ## compare with plain PyTorch hooks; figures are in benchmarks/README.md
	@for script in benchmarks/[a-z]*.py; do \
		echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; \
	done

train: $(STAMP)  ## remake tiny-refuser from scratch into OUT (default build/tiny-refuser)
	$(BIN)/python -m refusal_nn.models.organisms.train_tiny_refuser --out $(OUT)

sample: $(STAMP)  ## remake the small run that ships inside the package
	$(BIN)/python examples/make_sample_run.py

wheel: $(STAMP)  ## build the wheel into dist/
	$(BIN)/python -m build --wheel

constraints: $(STAMP)  ## record the versions now installed as the tested ones
	.ci/constraints $(BIN)/python

clean:  ## remove what was built; keeps the environment and the runs
	rm -rf build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './$(NDIF_VENV)/*' -prune -exec rm -rf {} +
