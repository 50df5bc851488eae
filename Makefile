# make run: set up, and build everything. make test: set up, and test. Both are quick the second time.
# With LOCKED=yes they install the versions of requirements/ alone, each file by its sha256, as CI does.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCKED ?=
INSTALL := $(BIN)/python -m pip install --quiet
# Two processes with a thread each; one that has no test left takes some of the other's. `made_once` in
# tests/conftest.py is what both share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: run test test-all test-exhaustive lint format clean lock

run: $(VENV)/.installed
	$(BIN)/snakemake --cores 4 all

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-dev
	$(PYTEST) --durations 60 -m "not exhaustive"

test-exhaustive: $(VENV)/.installed-dev
	$(PYTEST) --durations 60

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
	rm -rf artifacts logs report.md report.html .snakemake targets/*/bench.json $(wildcard targets/*/*/)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) pipeline/before_installing.py $(dir $(abspath $(VENV)))
	$(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(INSTALL) --require-hashes --only-binary :all: --requirement requirements/build.lock
	$(INSTALL) --require-hashes --no-build-isolation --use-pep517 --requirement requirements/run.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
else
	$(INSTALL) --editable .
endif
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
ifdef LOCKED
	$(INSTALL) --require-hashes --no-build-isolation --use-pep517 --requirement requirements/dev.lock
else
	$(INSTALL) --editable ".[dev]"
endif
	touch $@

# Make requirements/ fit pyproject.toml again; UPGRADE=--upgrade takes the newest versions besides. build.lock has
# what this package is built by, and setuptools, by which packages without a wheel are.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-annotate --custom-compile-command "make lock" $(UPGRADE)

lock: $(VENV)/.installed-dev
	$(COMPILE) pyproject.toml --extra dev --output-file requirements/dev.lock
	$(COMPILE) pyproject.toml --constraint requirements/dev.lock --output-file requirements/run.lock
	{ echo setuptools; sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml; } \
		| $(COMPILE) - --constraint requirements/dev.lock --output-file requirements/build.lock
