# The two commands that matter are `make demo` and `make test`; `make help` lists the rest.
# Each needs Python >= 3.11 and make. What else it needs goes into a virtual environment here.

PYTHON ?= python3
STORE ?=
GUARD ?= on

VENV := .venv
BIN := $(VENV)/bin
BARE := .venv-bare
LOWEST := .venv-lowest
PIP := python -m pip install -qq --disable-pip-version-check
PACKAGE := pyproject.toml README.md $(shell find src -type f -not -path '*/__pycache__/*')

# Two workers for two cores. The fault tests of a run stay together on one of them.
WORKERS ?= 2
PYTEST := -m pytest --tb=short -m "not campaign"
# The runs beside the main one: neither real crashes nor what takes seconds changes with them.
PYTEST_SHORT := -m pytest --tb=short -m "not campaign and not slow" --ignore=tests/faults -q

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test lint style layers types docs bare lowest check faults bench format clean

help: ## list the targets
	@echo "make <target> [PYTHON=python3.12]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-10s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## payments under four workers and a hostile client [STORE=redis://...] [GUARD=off]
	@$(BIN)/python examples/payments/demo.py --store "$(STORE)" --guard "$(GUARD)"

test: lint docs bare lowest check ## everything that must hold before a change goes in

lint: style layers types ## style, layers and types

style: $(VENV)/.dev
	$(BIN)/ruff check --output-format concise
	$(BIN)/ruff format --check --output-format concise

layers: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev ## build the documentation; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -n -b html docs docs/_build/html

bare: $(BARE)/.package ## the tests with no extra installed, on the built package
	$(BARE)/bin/python $(PYTEST_SHORT) --bare

lowest: $(LOWEST)/.dev ## the tests with the lowest supported versions
	$(LOWEST)/bin/python $(PYTEST_SHORT) -n $(WORKERS)

check: $(VENV)/.dev ## the tests, the short fault tests among them, and the bars for coverage
	@rm -f .coverage .coverage.*
	$(BIN)/python $(PYTEST) -n $(WORKERS) --dist loadgroup --cov --cov-report=
	@$(BIN)/python -m coverage report --fail-under=95
	@$(BIN)/python -m coverage report --include='*/demijohn/core/*,*/demijohn/stores/*' \
		--fail-under=100

faults: $(VENV)/.dev ## the long fault campaigns
	$(BIN)/python -m pytest tests/faults --timeout=3600

bench: $(VENV)/.dev ## measure, print a table, write benchmarks/results.json
	$(BIN)/python -m benchmarks

format: $(VENV)/.dev ## put the code into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove all that make has made
	rm -rf $(VENV) $(BARE) $(LOWEST) build dist docs/_build .coverage .coverage.* \
		.mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One recipe makes every environment. The group of a stamp's last part is what goes into it.
%/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Demijohn needs Python 3.11 or newer, and '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
		exit 1; }
	@echo "making $(@D)"
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/$(PIP) --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	@echo "installing what the demo needs"
	@$(BIN)/$(PIP) -e '.[redis,client]' --group demo
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml
	@echo "installing what development needs"
	@$(BIN)/$(PIP) -e '.[all]' --group dev
	@touch $@ $(VENV)/.demo

# Not editable: this run also proves that the built package is whole.
$(BARE)/.dev: $(BARE)/.pip pyproject.toml
	@echo "installing the package without extras"
	@$(BARE)/bin/$(PIP) . --group bare
	@touch $@

$(BARE)/.package: $(BARE)/.dev $(PACKAGE)
	@$(BARE)/bin/$(PIP) --no-deps --force-reinstall .
	@touch $@

$(LOWEST)/.dev: $(LOWEST)/.pip pyproject.toml tests/lowest.txt
	@echo "installing the lowest supported versions"
	@$(LOWEST)/bin/$(PIP) -e '.[all]' --group test -c tests/lowest.txt
	@touch $@
