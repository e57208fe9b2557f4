# Every target creates what it needs. An environment is made once, and brought up to date
# when pyproject.toml changes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo notebooks docs screenshots test test-python3 test-python3.13 test-oldest check bench bench-all bench-archives \
    faults mutations soak clean

PYTHON ?= python3
PYTEST_ARGS ?=
# such as --json, --scale 0.1, --rounds 5, or names of workloads
BENCH_ARGS ?=

# The oldest Python that is supported; it goes with the oldest dependencies.
PYTHON_OLDEST := $(shell .ci/find-python 3.11)
# The second Python to test on, and one for the official client, which has no wheel for 3.11.
PYTHON_313 := $(shell .ci/find-python 3.13)
PYTHON_OFFICIAL := $(shell .ci/find-python 3.13 3.14 3.12)
OFFICIAL_VERSION := 2.3.0
# The newest official client that writes spec 1 only; it runs on any Python.
OFFICIAL_V1_VERSION := 1.1.21

# pip's warnings are about how a machine is set up: only its errors are shown
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
PYTEST := -m pytest -n 2 --timeout 300

ifneq ($(PYTHON_OFFICIAL),)
OFFICIAL_ENV := .venv-official/.installed-$(OFFICIAL_VERSION)
OFFICIAL_V1_ENV := .venv-official-1/.installed-$(OFFICIAL_V1_VERSION)
export ICECHUNK_OFFICIAL_PYTHON := $(CURDIR)/.venv-official/bin/python
export ICECHUNK_OFFICIAL_V1_PYTHON := $(CURDIR)/.venv-official-1/bin/python
else
PYTEST += --ignore tests/interop
endif

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## a real NetCDF file, two commits, a tag, a branch, time travel
	@.venv/bin/python notebooks/demo.py

# the first cell that fails ends it; the files keep their outputs
notebooks: .venv/.installed ## run the notebooks from top to bottom
	@for notebook in notebooks/*.ipynb; do \
	    echo "== $$notebook"; \
	    .venv/bin/jupyter-execute --timeout=300 --kernel_name=python3 "$$notebook"; \
	done

docs: .venv-docs/.installed ## build the documentation into build/docs, without warnings
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict -f docs/mkdocs.yml
	@echo "open build/docs/index.html"

screenshots: .venv/.installed ## pictures of what notebooks show, by a browser that is installed
	@.venv/bin/python -m pytest -q tests/docs/test_cards.py --artefacts build/screenshots
	@echo "the pictures are in build/screenshots"

test: test-python3 test-python3.13 ## the tests, on python3 and on Python 3.13
ifeq ($(PYTHON_313),)
	@echo "== ONE PYTHON ONLY: no working python3.13 was found, so the tests ran on $(PYTHON) alone"
endif
ifeq ($(PYTHON_OFFICIAL),)
	@echo "== NO INTEROP TESTS: the official client needs Python 3.12 or newer, and none was found;"
	@echo "== nothing here has shown that it and this project read each other's repositories"
endif

test-python3: .venv/.installed $(OFFICIAL_ENV) $(OFFICIAL_V1_ENV) ## the tests, on python3 only
ifeq ($(PYTHON_OFFICIAL),)
	@if [ "$${CI:-}" = true ]; then \
	    echo "the interop tests must run in CI, and need Python 3.12 or newer: install python3.13" >&2; \
	    exit 1; \
	fi
endif
	@echo "== tests on $$(.venv/bin/python --version)"
	@.venv/bin/python $(PYTEST) $(PYTEST_ARGS)

ifneq ($(PYTHON_313),)
test-python3.13: .venv313/.installed $(OFFICIAL_ENV) $(OFFICIAL_V1_ENV) ## the tests, on Python 3.13 with the newest dependencies
	@echo "== tests on $$(.venv313/bin/python --version), newest dependencies"
	@.venv313/bin/python $(PYTEST) $(PYTEST_ARGS)
endif

# what calls other libraries most: Zarr, xarray, Dask, h5py, netCDF, GRIB, kerchunk, fsspec. Left
# out are other projects' own suites, and what would take long and depends on NumPy alone
OLDEST := $(addprefix tests/, test_lower_bounds.py test_private_names.py store \
    xarray_reading/test_reading.py \
    $(addprefix xarray_writing/test_, writer.py dask.py safety.py) \
    $(addprefix kerchunk/test_, metadata.py templates.py forms.py) \
    $(addprefix archives/test_, grib_scanner.py classic_scanner.py hdf5_scanner.py hdf5_types.py) \
    $(addprefix dask_writes/test_, store_dask.py distributed_write.py blocks.py alignment.py))

test-oldest: .venv-oldest/.installed ## the tests of what calls other libraries, with their oldest versions
	@echo "== tests on $$(.venv-oldest/bin/python --version), oldest dependencies"
	@.venv-oldest/bin/python $(PYTEST) $(OLDEST) $(PYTEST_ARGS)

check: .venv/.installed ## lint, format, types, import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: .venv/.installed $(OFFICIAL_ENV) ## measure, beside the official client where it is installed: a quarter of an hour
	@.venv/bin/python tests/benchmarks/table.py $(BENCH_ARGS)

fuzz: .venv/.installed ## a million damaged manifests, looked up and decoded: about an hour
	@ICECHUNK_FUZZ=$${ICECHUNK_FUZZ:-1000000} .venv/bin/python -m pytest -q --timeout 0 \
	    tests/format/test_stored_manifest.py -k much_damage $(PYTEST_ARGS)

bench-all: .venv/.installed $(OFFICIAL_ENV) ## the other measurements: opening, Dask, Parquet, virtual reads
	@.venv/bin/python -m pytest tests/benchmarks -s $(PYTEST_ARGS)

bench-archives: .venv/.installed ## virtualize 3,000 files, beside VirtualiZarr: a minute
	@.venv/bin/python tests/benchmarks/archives.py 3000

mutations: .venv/.installed ## a million mutated files through every decoder; half an hour
	@.venv/bin/python -m tests.format.mutations --count 1000000

faults: .venv/.installed ## what goes wrong at every single request; half an hour
	@ICECHUNK_EVERY_CALL=1 .venv/bin/python $(PYTEST) tests/faults tests/dask_writes/test_failure_table.py \
	    $(PYTEST_ARGS)

soak: .venv/.installed $(OFFICIAL_ENV) ## writers that are killed, on a folder and on S3, five minutes each
	@.venv/bin/python -m tests.faults.soak --on folder --writers 20 --seconds 300
	@.venv/bin/python -m tests.faults.soak --on s3 --writers 16 --seconds 300

clean: ## remove environments, caches and build results
	rm -rf .venv .venv313 .venv-docs .venv-oldest .venv-official .venv-official-1 build dist .hypothesis \
	    .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is too old: Python 3.11 or newer is needed (make PYTHON=... names another)" >&2; exit 1; }
	@echo "== installing into .venv, which takes a minute or two ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv .venv
	@.ci/pip-install .venv/bin/python --editable '.[dev]'
	@touch $@

.venv-docs/.installed: pyproject.toml
	@echo "== installing into .venv-docs ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv .venv-docs
	@.ci/pip-install .venv-docs/bin/python --editable '.[docs]'
	@touch $@

.venv313/.installed: pyproject.toml
	@echo "== installing into .venv313 ($$($(PYTHON_313) --version))"
	@$(PYTHON_313) -m venv .venv313
	@.ci/pip-install .venv313/bin/python --upgrade --upgrade-strategy eager --editable '.[test]'
	@touch $@

.venv-oldest/.installed: pyproject.toml .ci/oldest.txt
	@[ -n "$(PYTHON_OLDEST)" ] || { echo "no python3.11 was found" >&2; exit 1; }
	@echo "== installing the oldest dependencies into .venv-oldest"
	@$(PYTHON_OLDEST) -m venv --clear .venv-oldest
	@.venv-oldest/bin/python $(PIP_INSTALL) --constraint .ci/oldest.txt --editable '.[test]'
	@touch $@

# never in the same environment as this project: both are imported as `icechunk`
.venv-official/.installed-$(OFFICIAL_VERSION):
	@echo "== installing the official client $(OFFICIAL_VERSION) into .venv-official"
	@$(PYTHON_OFFICIAL) -m venv --clear .venv-official
	@.venv-official/bin/python $(PIP_INSTALL) icechunk==$(OFFICIAL_VERSION) zarr xarray dask distributed
	@touch $@

.venv-official-1/.installed-$(OFFICIAL_V1_VERSION):
	@echo "== installing the official client $(OFFICIAL_V1_VERSION) into .venv-official-1"
	@$(PYTHON) -m venv --clear .venv-official-1
	@.venv-official-1/bin/python $(PIP_INSTALL) icechunk==$(OFFICIAL_V1_VERSION) zarr xarray
	@touch $@
