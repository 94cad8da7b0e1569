# Everything a developer or CI runs. `make` lists the targets; nothing needs a terminal or, once `make env` and the
# model of `make demo` are there, a network.
#
#   make demo PYTHON=python3.12        another interpreter (3.11 or newer)
#   make env CONSTRAINTS=/dev/null     the newest allowed versions instead of the tested ones
#   make test WORKERS=4                more test processes at a time; each of them starts up to 8 ranks

PYTHON ?= python3
CONSTRAINTS ?= requirements/constraints-cpu.txt
PYTEST_ARGS ?=
WORKERS ?= 2
BENCH_ARGS ?=
FAULTS_ARGS ?=
FUZZ_ARGS ?=
EXPERIMENTS_ARGS ?=
PY ?= $(VENV)/bin/python

VENV := .venv
READY := $(VENV)/.cptron-ready
MODEL := .cache/smollm2-135m
SANITIZED := .cache/sanitized
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SANITIZED_PYTHON = PYTHONPATH=$(SANITIZED):tests ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" $(VENV)/bin/python -P
NEWEST := 0.19.2
NEWEST_DIR := .cache/megatron-core-$(NEWEST)

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input
# Several processes: half of a test of several ranks is waiting for messages and disks. Each keeps to one stretch of the
# tests, so that most of what a session makes once is made by one of them. Hundreds of processes import the same modules:
# their bytecode is kept, also where the shell says not to.
PYTEST := HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# The newest megatron-core is published as wheels for Linux on x86-64, which is what CI has.
ifeq ($(shell uname -s)-$(shell uname -m),Linux-x86_64)
NEWEST_READY := $(NEWEST_DIR)/.ready
endif

.DEFAULT_GOAL := help
.PHONY: help env demo experiments test test-more test-slurm slurm check test-newest-mcore sanitize bench-peers bench-data bench-convert bench-checkpoint bench-engine bench-curate bench-curate-peers bench-gpu-peers \
	bench-gpu bench-fp8-curve faults fuzz test-gpu clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 28

env: $(READY) $(NEWEST_READY) ## build the private environment .venv and fetch what the tests need

demo: $(READY) $(MODEL)/complete.json ## continue the pretraining of a real 135M model on this machine
	$(VENV)/bin/python examples/quickstart/run.py

experiments: $(READY) $(MODEL)/complete.json ## what replay, rate, monitor and selector do: docs/experiments (over an hour)
	$(VENV)/bin/python -m examples.experiments.run $(EXPERIMENTS_ARGS)

check: $(READY) ## lint, format and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

test: env $(MODEL)/complete.json check slurm ## check, then all tests, then the core multi-rank tests under the newest megatron-core
	$(PYTEST) -m "not more"
	@$(MAKE) --no-print-directory test-newest-mcore

test-more: env $(MODEL)/complete.json ## more cases of what `make test` proves: FP8 and adapters under more layouts
	$(PYTEST) -m "more and not slurm"
	$(PYTEST) --hypothesis-profile anew -m "not more" tests/unit tests/mixture

test-slurm: $(READY) ## jobs on a real SLURM of two nodes on this machine, installed where it can be (about 10 minutes)
	$(VENV)/bin/python tests/slurm/slurm_install.py --required
	HF_HUB_OFFLINE=1 TEST_SLURM_REQUIRED=1 $(VENV)/bin/python -m pytest $(PYTEST_ARGS) --durations=0 tests/slurm

slurm: $(READY) ## install SLURM for its tests, from the distribution: as root on Debian or Ubuntu
	@$(VENV)/bin/python tests/slurm/slurm_install.py

test-newest-mcore: $(READY) $(NEWEST_READY) ## the core multi-rank tests under the newest megatron-core
ifdef NEWEST_READY
	PYTHONPATH=$(CURDIR)/$(NEWEST_DIR) $(VENV)/bin/python -c \
		'import megatron.core as m; assert m.__version__.startswith("$(NEWEST)"), m.__version__'
	PYTHONPATH=$(CURDIR)/$(NEWEST_DIR) $(PYTEST) -m "core_ranks and not more" tests/ranks
else
	@echo "megatron-core $(NEWEST) has no wheel for $$(uname -sm): its tests run on Linux x86_64 only"
endif

fuzz: $(READY) ## every reader on 100,000 damaged files: benchmarks/results/fuzz.json (minutes)
	HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR):tests:tests/fuzz $(VENV)/bin/python tests/fuzz/fuzz_run.py $(FUZZ_ARGS)

faults: $(READY) ## inject every fault by the dozen or hundred: benchmarks/results/faults.json (about an hour on 2 cores)
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(VENV)/bin/python -m faults.injection $(FAULTS_ARGS)

bench-peers: $(READY) ## fetch the peers of bench-data: tokenizers, Megatron-LM
	$(VENV)/bin/python -m benchmarks.data.get_tokenizers
	$(VENV)/bin/python -m benchmarks.data.get_peers

bench-data: bench-peers ## the data path against its peers: benchmarks/results/data.json
	$(VENV)/bin/python -m benchmarks.data.run $(BENCH_ARGS)

bench-convert: $(READY) ## import and export against a copy of the same bytes: benchmarks/results/convert.json
	$(VENV)/bin/python -m benchmarks.convert.run $(BENCH_ARGS)

bench-checkpoint: $(READY) ## saves and loads against a copy of the same bytes: benchmarks/results/checkpoint.json
	$(VENV)/bin/python -m benchmarks.checkpoint.run $(BENCH_ARGS)

bench-curate-peers: $(READY) ## fetch the peers of bench-curate into .cache, beside the environment
	$(PIP) install --quiet --no-deps --upgrade --target .cache/bench-curate-peers -r benchmarks/curate/requirements-peers.txt

bench-curate: bench-curate-peers ## curation and tokenizers against their peers, a real corpus raw to tokens: benchmarks/results/curate.json
	$(VENV)/bin/python -m benchmarks.curate.run $(BENCH_ARGS)

bench-engine: $(READY) ## the engine against a transformers loop on the CPU: benchmarks/results/engine_cpu.json
	$(VENV)/bin/python -m benchmarks.engine.run --device cpu $(BENCH_ARGS)

bench-gpu-peers: ## fetch torchtitan and torchao for bench-gpu into .cache, beside the environment of PY
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .cache/bench-engine-peers \
		-r benchmarks/engine/requirements-peers.txt

bench-gpu: ## the engine against its peers on one CUDA device, in the environment of PY: benchmarks/results/engine_cuda.json
	$(PY) -m benchmarks.engine.run --device cuda $(BENCH_ARGS)

bench-fp8-curve: $(READY) ## loss in FP8 beside loss in bf16, after `make demo`: benchmarks/results/fp8_curve.json
	$(VENV)/bin/python -m benchmarks.engine.fp8_curve $(BENCH_ARGS)

sanitize: $(READY) ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf $(SANITIZED)
	CXXFLAGS="$(SANITIZE) -g" LDFLAGS="$(SANITIZE)" $(VENV)/bin/python setup.py --quiet build --build-lib $(SANITIZED) \
		--build-temp $(SANITIZED)/temp
	$(SANITIZED_PYTHON) -c 'import cptron._kernels as kernels; assert "sanitized" in kernels.__file__, kernels.__file__'
	$(SANITIZED_PYTHON) -m pytest -q $(PYTEST_ARGS) $(wildcard tests/unit/test_data_*.py tests/unit/test_dedup_*.py tests/unit/test_corpus_fast_rules.py)

test-gpu: ## the engine on one CUDA device, in the environment of PY: make test-gpu PY=python3
	$(PY) -m pytest $(PYTEST_ARGS) -m gpu tests/gpu

clean: ## remove the environment, build outputs and tool caches; downloads in .cache stay
	rm -rf $(VENV) build *.egg-info cptron/_kernels*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find cptron tests examples tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# One stamp for the environment: a change of metadata, pins or kernels installs again, and compiles what changed.
$(READY): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/*) | $(VENV)/bin/python
	@echo "env: installing dependencies and building the kernels (minutes the first time)"
	$(PIP) install --quiet --progress-bar off -c $(CONSTRAINTS) setuptools wheel pybind11
	$(PIP) install --quiet --progress-bar off -c $(CONSTRAINTS) --no-build-isolation -e ".[dev]"
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: '$(PYTHON)' is" \
		"$$($(PYTHON) -V 2>/dev/null || echo absent), but Python 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import pathlib, sysconfig; (pathlib.Path(sysconfig.get_path("include")) / "Python.h").stat()' \
		2>/dev/null || { echo "error: the headers of $(PYTHON) are missing: install python3-dev" >&2; exit 2; }
	@command -v c++ >/dev/null || { echo "error: no C++ compiler 'c++': install g++ or clang" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(MODEL)/complete.json: examples/quickstart/get_model.py | $(READY)
	$(VENV)/bin/python examples/quickstart/get_model.py $(MODEL)
	@touch $@

# The wheel is tagged for Python 3.12, but what is used of it is pure Python that 3.11 runs as well; so it is unpacked
# beside the environment, never installed into it. It imports triton even where no kernel of it is run.
$(NEWEST_DIR)/.ready: requirements/newest-mcore.txt | $(READY)
	@echo "env: fetching megatron-core $(NEWEST) and triton for the tests under the newest version"
	rm -rf $(NEWEST_DIR)
	$(PIP) install --quiet --progress-bar off --no-deps --target $(NEWEST_DIR) -r requirements/newest-mcore.txt
	$(PIP) download --quiet --progress-bar off --no-deps --python-version 3.12 --platform manylinux_2_28_x86_64 \
		--only-binary=:all: -d .cache/wheels megatron-core==$(NEWEST)
	$(VENV)/bin/python -m zipfile -e .cache/wheels/megatron_core-$(NEWEST)-cp312-*.whl $(NEWEST_DIR)
	@touch $@
