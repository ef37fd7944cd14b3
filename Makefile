# Every target creates .venv and installs what it needs, once.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types docs bench dist licences clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	grep '^torch==' constraints.txt | xargs $(BIN)/python -m pip install --quiet
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(READY) ## create .venv and install cocomix with everything needed to develop it

demo: $(READY) ## the whole method on this machine's own documentation; ends with a table and a report page
	$(BIN)/cocomix demo $(ARGS)

test: $(READY) ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY) ## build the documentation site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

check: lint types docs test ## what CI runs: lint, format, strict types on src, documentation, tests

bench: $(READY) ## measure speed as ratios; writes results/benchmarks/
	$(BIN)/python -m benchmarks $(ARGS)

dist: $(READY) ## build sdist and wheel into dist/; the version is the git tag's
	$(BIN)/python -m build $(ARGS)

licences: $(READY) ## list the licences of all dependencies in docs/licences.md
	$(BIN)/python .ci/licences.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
