# `make demo` and `make test` need Python >= 3.10 and nothing else: they create .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/installed
	$(BIN)/python examples/train_detector.py --loss all --out out/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest tests

lint: $(VENV)/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m pytest bench --benchmark-sort=name --benchmark-columns=median,iqr,rounds

# torch is installed by itself first: what follows then finds it in place and pulls no other build.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,bench,examples,lint]'
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info
