# Needs python3 (3.10 to 3.13), make and the package index. Every target makes its own .venv on first use.
# A different interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-integrations lint soak bench bench-gpu docs clean
.NOTPARALLEL:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/stamp-run  ## train NoProp and backprop on small digits, compare them, show a prediction
	$(BIN)/python examples/demo.py

test: lint  ## format, lint and type checks, then fast tests, examples in docstrings, README and notebook
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-integrations: $(VENV)/stamp-integrations  ## tests of what runs inside other libraries' trainers; installs them
	$(BIN)/python -m pytest tests/integrations

lint: $(VENV)/stamp-test  ## format, lint and type checks only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(VENV)/stamp-test  ## kill a run at every file operation, damage every kind of file; prints counts (minutes)
	$(BIN)/python -m benchmarks.soak

bench: $(VENV)/stamp-bench  ## time a NoProp step and the engines against plain loops and the machine (minutes)
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.noise
	$(BIN)/python -m benchmarks.flips
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.small_steps
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.noprop_step
	$(BIN)/python -m pytest benchmarks/micro -c benchmarks/micro/pytest.ini

bench-gpu: $(VENV)/stamp-run  ## measure everything that wants a GPU, in under ten minutes
	$(BIN)/python -m benchmarks.gpu --out runs/gpu

docs: $(VENV)/stamp-docs  ## build the site of docs/ and the Python reference into site/; a broken link is an error
	@# --quiet would drop the warnings before --strict counts them
	$(BIN)/mkdocs build --strict

clean:  ## remove .venv, site/ and caches; runs/ and downloaded data stay
	rm -rf $(VENV) site build .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests examples benchmarks experiments docs -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written after pip has succeeded, so an interrupted install is simply done again, and a changed
# pyproject.toml installs anew.
$(VENV)/stamp-run: pyproject.toml | $(VENV)/stamp-venv
	$(PIP) install --quiet -e .
	@touch $@

$(VENV)/stamp-test: pyproject.toml | $(VENV)/stamp-venv
	$(PIP) install --quiet -e '.[test]'
	@touch $@

$(VENV)/stamp-integrations: pyproject.toml | $(VENV)/stamp-venv
	$(PIP) install --quiet -e '.[test,transformers,tune,lightning]'
	@touch $@

$(VENV)/stamp-bench: pyproject.toml | $(VENV)/stamp-venv
	$(PIP) install --quiet -e '.[bench]'
	@touch $@

$(VENV)/stamp-docs: pyproject.toml | $(VENV)/stamp-venv
	$(PIP) install --quiet -e '.[docs]'
	@touch $@

$(VENV)/stamp-venv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.10 to 3.13, or give one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v[:2] <= (3, 13) and "$(PYTHON) is Python %d.%d; Sidestep needs 3.10 to 3.13, because PyTorch has no packages for others: give one with make PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: on Debian and Ubuntu, install the package python3-venv"; exit 1; }
	@echo "making $(VENV) and installing packages (PyTorch is large: this takes a while, once)"
	$(PYTHON) -m venv $(VENV)
	@touch $@
