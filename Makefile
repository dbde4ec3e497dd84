# Everything starts from nothing: the environment is made on first use, and again when what it is made from changes.
.PHONY: demo character test test-slow test-all rehearse check docs figures format clean
.DEFAULT_GOAL := demo

PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile

demo: .venv/installed
	$(BIN)/llamactl quickstart --time 3m

# A snail that keeps a library, from nothing in ten minutes: docs/character.md.
character: .venv/installed
	$(BIN)/python examples/character/make_character.py

# In minutes: all but the tests marked slow.
test: .venv/installed
	$(PYTEST) -m "not slow"

test-slow: .venv/installed
	$(PYTEST) -m slow

test-all: test test-slow

# The CUDA path without a GPU, on a driver that computes nothing: 5 GB into .rehearsal/, some ten minutes, needs gcc.
rehearse: .venv/installed
	tests/rehearsal/driver/setup.sh .rehearsal $(PYTHON)
	LLAMACTL_REHEARSAL=$(CURDIR)/.rehearsal $(BIN)/pytest -n 0 tests/rehearsal

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The documentation site, into site/.
docs: .venv/installed
	$(BIN)/mkdocs build --strict

# The pictures and printed output in README and docs, from one run of the quick start; needs Chromium and ten minutes.
figures: .venv/installed
	$(BIN)/python benchmarks/figures.py

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llamactl needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
