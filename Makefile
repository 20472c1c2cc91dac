# Every target sets up what it needs in .venv first, once. PYTHON chooses the interpreter of a new .venv (3.10 or later),
# TORCH_INDEX where torch comes from, for a driver that is too old for torch's default CUDA wheel.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# Of the demo alone: fewer steps and rows, and shorter prompts. Work is counted, not minutes: how long it takes is said first.
DEMO := --split cold-items --steps 100 --eval-every 50 --valid-rows 400 --test-rows 1000 --learning-rate 7e-4 --warmup-steps 20 \
  --new-items titles --cora max_history=3 --cora offset=true --cora shared_prefix=true --cora shared_rank=8 --cora item_dropout=0.5

.PHONY: demo test test-all fuzz bench docs gpu lint format sanitize cuda-build clean

demo: $(READY)
	$(BIN)/cora train --model smollm2-135m --data movielens-100k --out runs/demo $(DEMO)
	$(BIN)/cora score --run runs/demo --user 196 --top 10

test: $(READY)
	$(BIN)/python -m pytest -n auto

test-all: $(READY)
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

# Random calls of the kernels and random files for the readers: thousands of each, other ones every time.
fuzz: $(READY)
	$(BIN)/python -m pytest tests/kernels/test_fuzz_calls.py tests/data/test_fuzz_files.py --hypothesis-profile=fuzz -n auto

# Table and pictures of this machine go to bench/results, beside those of others. ISA=avx2 or avx512: as on a processor
# that has no more, for our kernels and, as far as they can be told, for torch's libraries and NumPy's.
AS_avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
AS_avx512 := ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE OPENBLAS_CORETYPE=SkylakeX
bench: $(READY)
	mkdir -p build
	OPENBLAS_THREAD_TIMEOUT=4 $(AS_$(ISA)) $(BIN)/python -m pytest bench $(if $(ISA),--isa=$(ISA)) -q --benchmark-json=build/bench.json --benchmark-disable-gc --benchmark-columns=median
	$(BIN)/python -m bench.report build/bench.json

# The Markdown beside the packages and their docstrings as a site: build/site/index.html.
docs: $(READY)
	$(PIP) mkdocs-material
	$(BIN)/python docs.py

# Everything that only a GPU can say, in ten minutes (FAST=1: three), into bench/results/gpu and onto the terminal.
gpu:
	$(PYTHON) bench/gpu/driver.py --must $(TORCH_INDEX)
	$(MAKE) $(READY)
	$(BIN)/python -m bench.gpu $(if $(FAST),--fast)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# AddressSanitizer and UBSan over the native kernels' tests.
sanitize: $(READY)
	$(BIN)/python setup.py build_py --build-lib build/sanitize \
	  build_ext --sanitize --build-temp build/sanitize-objects --build-lib build/sanitize
	cd build/sanitize && ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	  ../../$(BIN)/python -m pytest ../../tests/kernels --rootdir=../.. -n 2

# The extension with CUDA kernels, against a CUDA build of torch in a virtual environment of its own.
cuda-build:
	test -x .venv-cuda/bin/python || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/pip install --quiet torch==2.14.1 numpy ninja "setuptools>=77"
	CUDA_HOME=$${CUDA_HOME:-/usr/local/cuda} .venv-cuda/bin/python setup.py build_py --build-lib build/cuda \
	  build_ext --required --build-lib build/cuda --build-temp build/cuda-objects
	cd build/cuda && ../../.venv-cuda/bin/python -m cora_kernels.info

clean:
	rm -rf .venv build *.egg-info cora_kernels/*.so cora_kernels/built.json

$(READY): pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed, PYTHON=... names one; found " + sys.version)'
	$(PYTHON) bench/gpu/driver.py $(TORCH_INDEX)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch setuptools ninja
	$(PIP) --no-build-isolation -e '.[dev]'
	# A CUDA build of torch has brought the Triton made for it; a CPU build has none, and the tests compile kernels.
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) "triton==3.9.0; platform_system == 'Linux'"
	touch $@
