# make demo   the whole path on a small rendered corpus
# make test   lint, types and all tests
# make setup  the virtual environment alone
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# With a GPU the ordinary CUDA build of torch is wanted; without one, the small CPU build.
CONSTRAINT := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)

# Ray's and the tests' processes share the cores; more threads in each would only wait for one another.
export OMP_NUM_THREADS ?= 1

PROCESSES := tests/cluster tests/precompute tests/jobs tests/infra tests/test_interpreter.py

.PHONY: setup demo test lint types tests clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINT) -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/trio-ray demo

test: setup lint types tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# Tests that start processes, Ray's above all, wait for them most of the time; the others compute. So the two halves run
# beside each other.
tests: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PROCESSES) & processes=$$!; \
	$(BIN)/coverage run -m pytest $(addprefix --ignore=,$(PROCESSES)); others=$$?; \
	wait $$processes && exit $$others
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --fail-under=85

clean:
	rm -rf $(VENV) demo_output .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
