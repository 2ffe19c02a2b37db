# Pip only, everything under .venv. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Extra arguments for pytest, for instance: make test PYTEST_ARGS="-x -k resume"
PYTEST_ARGS ?=
# So many test files side by side (tests/conftest.py says which do not); 0 for one after another.
JOBS ?= 2
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo openclipart test test-fast lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## create .venv with the pinned dependencies and roseate itself (editable)

demo: install ## the whole way on two CPU cores: a small web, ingest, training, evaluation, report
	$(BIN)/roseate demo

openclipart: $(VENV)/installed-towers ## the same on real drawings and real pretrained towers
	$(BIN)/roseate openclipart

test: $(VENV)/installed-test lint ## ruff and every test that needs no GPU
	$(BIN)/python -m pytest -m "not gpu" $(SIDE_BY_SIDE) $(PYTEST_ARGS)

test-fast: $(VENV)/installed-test ## the tests without SLURM and without whole commands
	$(BIN)/python -m pytest -m "not gpu and not cluster and not end_to_end" $(SIDE_BY_SIDE) $(PYTEST_ARGS)

lint: $(VENV)/installed-test ## ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove .venv and build leftovers; runs/ is left alone
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp files make a second call instant; editing pyproject.toml or constraints.txt renews them.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt setuptools -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed-towers
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

$(VENV)/installed-towers: $(VENV)/installed towers.txt
	$(PIP) install --quiet --disable-pip-version-check --no-deps -r towers.txt
	@touch $@
