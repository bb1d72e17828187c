# Two commands: `make demo` and `make test`. Both set up .venv first, both can be stopped and started again.
PYTHON ?= python3
# e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a machine without a GPU
PIP_ARGS ?=
# overrides of conf/demo, for instance make demo DEMO=demo=tiny to try the plumbing
DEMO ?=
BIN := .venv/bin

# two workers, a file each at a time (those with slow tests first: tests/conftest.py), on one thread each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo setup lint types imports test test-all docs format clean
help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade $(PIP_ARGS) -c constraints.txt pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

setup: .venv/.installed  ## create .venv and install everything, exactly pinned

demo: setup  ## the whole main job on synthetic conversations: videos and numbers in runs/demo
	$(BIN)/af demo $(DEMO)

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy
	$(BIN)/mypy

imports: setup  ## who may import whom
	$(BIN)/lint-imports --no-cache

test: lint types imports  ## lint, types, import rules and the tests (under 10 minutes on two cores)
	$(PYTEST) -m "not slow"

test-all: lint types imports  ## the same with the slow tests and the notebooks
	$(PYTEST)

docs: setup  ## write docs/configuration.md from conf/ and the demo's table in README.md from docs/demo_runs/
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/demo_table.py

format: setup  ## rewrite the files as the formatter wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove outputs and caches, keep .venv
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
