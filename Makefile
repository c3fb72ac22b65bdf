# `make figures` and `make test` do all their own set-up. VENV=... puts the virtual environment elsewhere.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)-peers
SET ?= digits
# what JupyterLab writes anew at each save; .pre-commit-config.yaml strips the same
KEYS := metadata.language_info

.DEFAULT_GOAL := help
.PHONY: help figures study test test-faults bench bench-quick lint lab clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

figures: $(READY)  ## Train the classifiers and draw the gallery (SET=digits)
	$(BIN)/python -m figures build $(SET)

# the last five read Fashion-MNIST: `python -m training prepare fashion-mnist`
study: $(READY)  ## Build the whole study (hours on two cores; one of its eight sets wants a GPU)
	$(BIN)/python -m figures build study
	$(BIN)/python -m figures build study-cnn6
	$(BIN)/python -m figures build study-cnn6-attacks
	$(BIN)/python -m figures build study-fashion-mnist
	$(BIN)/python -m figures build study-fashion-mnist-eps8
	$(BIN)/python -m figures build study-fashion-mnist-epochs
	$(BIN)/python -m figures build study-fashion-mnist-hybrids
	$(BIN)/python -m figures build study-fashion-mnist-adv

# The fast tests check the shapes of all arguments as they run, which costs a third of the time; the slow ones run the
# code as users do.
test: $(READY)  ## Run all tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not slow' tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow -o addopts='--strict-markers -ra' tests

test-faults: $(READY)  ## Damage, fill up, lock, fuzz and kill -9 at length, as a table (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.faults

bench: $(PEERS)/.ready  ## Hold gradlens against its peers, as a table (an hour; README's Speed)
	$(BIN)/python -m training sweep training/sweeps/digits.toml --out runs/digits
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m tests.bench --json runs/bench.json

bench-quick: $(PEERS)/.ready  ## The same on smaller work, in three minutes
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m tests.bench --quick

lint: $(READY)  ## Check format, style, types, import directions and that notebooks hold no outputs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify --extra-keys "$(KEYS)" notebooks/*.ipynb

lab: $(READY)  ## Open JupyterLab in notebooks/, with trained runs to look at
	$(BIN)/python -m training sweep training/sweeps/digits.toml --out runs/digits
	$(BIN)/python -m training sweep training/sweeps/digits-hybrid.toml --out runs/digits-hybrid
	cd notebooks && $(abspath $(BIN))/python -m jupyter lab --ip 127.0.0.1

clean:  ## Remove the environment, runs, figures and caches
	rm -rf $(VENV) $(PEERS) runs figures/out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# The peers stand in an environment of their own that sees all of the first one: what they ask for is not installed, as
# torchattacks would bring back a version of requests that JupyterLab refuses.
$(PEERS)/.ready: $(READY) tests/bench/requirements.txt
	$(BIN)/python -m venv $(PEERS)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gradlens-dev.pth
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/bench/requirements.txt
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradlens needs Python 3.11 or newer; name one with PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
