# `make figures` and `make test` do all their own set-up. VENV=... puts the virtual environment elsewhere.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SET ?= digits
# what JupyterLab writes anew at each save; .pre-commit-config.yaml strips the same
KEYS := metadata.language_info

.DEFAULT_GOAL := help
.PHONY: help figures test lint lab clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

figures: $(READY)  ## Train the classifiers and draw the gallery (SET=digits)
	$(BIN)/python -m figures build $(SET)

test: $(READY)  ## Run all tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

lint: $(READY)  ## Check format, style, types, import directions and that notebooks hold no outputs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify --extra-keys "$(KEYS)" notebooks/*.ipynb

lab: $(READY)  ## Open JupyterLab in notebooks/, with trained runs to look at
	$(BIN)/python -m training sweep training/sweeps/digits.toml --out runs/digits
	cd notebooks && $(abspath $(BIN))/python -m jupyter lab --ip 127.0.0.1

clean:  ## Remove the environment, runs, figures and caches
	rm -rf $(VENV) runs figures/out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradlens needs Python 3.11 or newer; name one with PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
