# `make demo` and `make test` need Python >= 3.10 and nothing else: they create .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Two processes of one thread each are faster here than one of two, and the slowest file bounds the time.
PARALLEL := -n 2 --dist loadfile
NOT_OF_KERNELS := ahead_of_time bench bench_peers cli compare example notebooks package pages pictures readme repository results site
KERNEL_TESTS := $(filter-out $(NOT_OF_KERNELS:%=tests/test_%.py), $(wildcard tests/test_*.py))

.PHONY: demo docs test test-installed test-interpreted fuzz test-torchvision test-transformers test-lightning test-ultralytics \
	test-mmdetection test-oldest lint bench bench-host bench-compare gpu kernels package clean

demo: $(VENV)/installed
	$(BIN)/python examples/train_detector.py --loss all --out out/demo

test: test-installed test-interpreted

# The pages as a site, out/site/index.html.
docs: .venv-docs/installed
	.venv-docs/bin/python -m mkdocs build --strict

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

# Each stack in an environment of its own: its tests, and the blocks of its page in docs/. torchvision, which Ultralytics
# needs too, is not on PyPI for CPU-only torch, and comes with 5 GB of CUDA libraries.
test-torchvision test-transformers test-lightning test-ultralytics test-mmdetection: test-%: .venv-%/installed
	.venv-$*/bin/python -m pytest $(wildcard tests/test_$*.py tests/test_$*_*.py)
	.venv-$*/bin/python -m pytest tests/test_pages.py -k $*

# The reference, and kernels compiled, with the oldest PyTorch and Triton that are promised.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m triton_rankloss kernels --quick --arch sm_80 --arch sm_90
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest $(KERNEL_TESTS) $(PARALLEL)

# Every kernel, in all its forms, for every architecture, into docs/architectures.json. Takes long. DTYPES: further ones,
# as --dtype bfloat16 --dtype float64.
kernels: $(VENV)/installed
	mkdir -p out
	$(BIN)/python -m triton_rankloss kernels --arch all --dtype float32 $(DTYPES) --json out/kernels.json
	$(BIN)/python -m tools.architectures out/kernels.json

# Wheel and sdist; then the wheel in an environment that holds nothing else, first without Triton, then with all it asks
# for. Commands run in the folder of that environment, from where the checkout is not importable.
package: .venv-package/installed
	rm -rf dist .venv-wheel
	.venv-package/bin/python -m build
	.venv-package/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-wheel/bin/python -m pip uninstall --quiet --yes triton
	.venv-wheel/bin/python -m pip install --quiet --constraint constraints.txt numpy
	.venv-wheel/bin/python -m pip install --quiet --no-deps dist/*.whl
	cd .venv-wheel && bin/python -m triton_rankloss info | grep 'triton  *not installed'
	cd .venv-wheel && bin/python ../tests/user_code.py
	cd .venv-wheel && ../.venv-package/bin/mypy --strict --config-file= --python-executable bin/python ../tests/user_code.py
	echo '{}' > .venv-wheel/pyrightconfig.json  # pyright would find the configuration of the checkout, and so the checkout
	cd .venv-wheel && ../.venv-package/bin/pyright --pythonpath bin/python ../tests/user_code.py
	.venv-wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	.venv-wheel/bin/python -m pip check
	cd .venv-wheel && bin/python -m triton_rankloss check --device cpu --size tiny

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

.venv-torchvision/installed .venv-ultralytics/installed: .venv-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet 'torch===2.13.0' torchvision==0.28.0
	.venv-$*/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test,examples,$*]'
	touch $@

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet torch==2.6.0 triton==3.2.0 'numpy<2' --editable '.[test]'
	touch $@

.venv-transformers/installed .venv-lightning/installed: .venv-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-$*/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test,examples,$*]'
	touch $@

# mmcv has no build for this torch: its CPU operators are compiled once, about 20 minutes on one core, and kept.
MMCV := .venv-mmdetection/bin/python -m pip
.venv-mmdetection/mmcv:
	$(PYTHON) -m venv .venv-mmdetection
	$(MMCV) install --quiet torch==2.6.0 torchvision==0.21.0 'numpy<2' 'setuptools<70' wheel ninja psutil
	MMCV_WITH_OPS=1 FORCE_CUDA=0 $(MMCV) install --no-build-isolation --no-binary mmcv mmcv==2.2.0 'numpy<2'
	touch $@

# mmdet 3.3.0 asks for mmcv < 2.2.0, and works with it.
.venv-mmdetection/installed: pyproject.toml .venv-mmdetection/mmcv
	$(MMCV) install --quiet mmengine==0.10.7 mmdet==3.3.0 'numpy<2' --editable '.[test,mmdetection]'
	sed -i "s/^mmcv_maximum_version = '2.2.0'/mmcv_maximum_version = '2.3.0'/" \
		.venv-mmdetection/lib/python*/site-packages/mmdet/__init__.py
	touch $@

# Neither torch nor this package: docstrings are read, not imported.
.venv-docs/installed: tools/site/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --requirement tools/site/requirements.txt
	touch $@

.venv-package/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet --constraint constraints.txt build mypy 'pyright[nodejs]' twine
	touch $@

clean:
	rm -rf $(VENV) .venv-* out build dist *.egg-info
