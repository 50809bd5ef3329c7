# `make demo` and `make test` need Python >= 3.10 and nothing else: they create .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two processes of one thread each are faster here than one of two, and the slowest file bounds the time.
PARALLEL := -n 2 --dist loadfile
KERNEL_TESTS := $(filter-out tests/test_example.py $(wildcard tests/test_bench*.py) tests/test_cli.py \
	tests/test_ahead_of_time.py tests/test_readme.py tests/test_repository.py, $(wildcard tests/test_*.py))

.PHONY: demo test test-installed test-interpreted fuzz test-torchvision test-transformers lint bench bench-host bench-compare gpu clean

demo: $(VENV)/installed
	$(BIN)/python examples/train_detector.py --loss all --out out/demo

test: test-installed test-interpreted

# On a GPU, where there is one.
test-installed: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests $(PARALLEL)

# The losses through the Triton kernels, on CPU tensors.
test-interpreted: $(VENV)/installed
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest $(KERNEL_TESTS) $(PARALLEL)

# Random calls against literal formulas: 10,000 on the reference, or on a GPU; through interpreted kernels what five
# minutes allow. FUZZ: further options, as --seconds 3600 or --seed 1 --only 7.
fuzz: $(VENV)/installed
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz $(FUZZ)
	PYTHONPATH=tests OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m fuzz $(FUZZ)

# In an environment of its own: torchvision has no build for CPU-only torch, and comes with 5 GB of CUDA libraries.
test-torchvision: .venv-torchvision/installed
	.venv-torchvision/bin/python -m pytest tests/test_torchvision.py

test-transformers: .venv-transformers/installed
	.venv-transformers/bin/python -m pytest tests/test_transformers.py tests/test_transformers_trainer.py

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# BENCH: further options, as --seconds 0.5 or -k fewer. A red check ends in an error.
bench: $(VENV)/installed
	mkdir -p out && rm -f out/bench.json
	$(BIN)/python -m pytest bench --benchmark-quiet --benchmark-json=out/bench.json $(BENCH); status=$$?; \
	$(BIN)/python -m bench report out/bench.json && exit $$status

# What the host does in a call on a GPU; measured without one.
bench-host: $(VENV)/installed
	TRITON_INTERPRET=1 $(BIN)/python -m pytest bench/test_host.py

# Ends in an error if anything of ours became slower.
BEFORE ?= bench/results/cpu-2core/bench.json
AFTER ?= out/bench.json
bench-compare: $(VENV)/installed
	$(BIN)/python -m bench compare $(BEFORE) $(AFTER)

# Of PYTHON, which has torch and triton: nothing is installed. Under 8 minutes; see bench/gpu_run.py.
gpu:
	PYTHONPATH=. $(PYTHON) -m bench.gpu_run

# torch is installed by itself first: what follows then finds it in place and pulls no other build.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,bench,examples,lint]'
	touch $@

.venv-torchvision/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/python -m pip install --quiet 'torch===2.13.0' torchvision==0.28.0
	.venv-torchvision/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test,examples,torchvision]'
	touch $@

.venv-transformers/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-transformers
	.venv-transformers/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-transformers/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test,examples,transformers]'
	touch $@

clean:
	rm -rf $(VENV) .venv-* out build dist *.egg-info
