# make run: set up, and build everything. make test: set up, and test. Both are quick the second time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# two processes with a thread each, whole files at a time, since what a file's tests share is made once
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: run test test-all lint format clean

run: $(VENV)/.installed
	$(BIN)/snakemake --cores 4 all

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-dev
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflows

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflows

# What was built; the environment and the store stay.
clean:
	rm -rf artifacts logs report.md .snakemake targets/*/bench.json $(wildcard targets/*/*/)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
