# Every target creates .venv where it is missing and installs what the target needs, once; a later one adds the rest.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types docs bench dist licences clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.demo: pyproject.toml constraints.txt
	PYTHON=$(PYTHON) bash .ci/install demo
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	PYTHON=$(PYTHON) bash .ci/install dev
	@touch $@ $(VENV)/.demo

install: $(VENV)/.dev ## install everything needed to develop cocomix

demo: $(VENV)/.demo ## the whole method on this machine's own documentation; ends with a table and a report page
	$(BIN)/cocomix demo $(ARGS)

test: $(VENV)/.dev ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev ## build the documentation site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

check: lint types docs test ## what CI runs: lint, format, imports between rooms, strict types on src, documentation, tests

bench: $(VENV)/.dev ## measure speed as ratios; writes results/benchmarks/
	$(BIN)/python -m benchmarks $(ARGS)

dist: $(VENV)/.dev ## build sdist and wheel into dist/; the version is the git tag's
	$(BIN)/python -m build $(ARGS)

licences: $(VENV)/.dev ## list the licences of all dependencies in LICENCES.md
	$(BIN)/python .ci/licences.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
