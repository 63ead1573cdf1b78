# Every target sets up all that it needs on a fresh Debian or Ubuntu machine (as root); elsewhere
# it names what is missing. `make` alone lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Targets share one .venv and one engine; two cores gain nothing from running them at once.
.NOTPARALLEL:

BIN := .venv/bin
export PYTHON

.PHONY: help demo test lint bench soak docs clean setup

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the founding story: a night bare, the same night through sealrun
	@.ci/setup engine
	$(BIN)/python examples/demo.py

test: lint ## lint, then every test; soak tests as a sample
	@.ci/setup engine tests
	SEALRUN_SOAK=sample $(BIN)/python -m pytest

lint: ## ruff, mypy and pyright
	@.ci/setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright

bench: ## every benchmark, each beside what it is compared with
	@.ci/setup bench engine
	@set -e; for script in benchmarks/*.py; do \
	  echo "== $$script"; $(BIN)/python "$$script"; \
	done

soak: ## every soak test at full size
	@.ci/setup engine soak tests
	SEALRUN_SOAK=full $(BIN)/python -m pytest -m soak --timeout 0

docs: ## the manual as HTML, in docs/_build/html
	@.ci/setup docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

setup: ## .venv and system packages only
	@.ci/setup

clean: ## remove what these targets made in the checkout, .venv included
	rm -rf .venv .demo dist build docs/_build images/init/build .ci/.lock
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find runner tests benchmarks examples images -name __pycache__ -type d -prune -exec rm -rf {} +
