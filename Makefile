# One command for each thing one does often: `make help` lists them.
PYTHON ?= python3
WORKERS ?= 2
LAB_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python

# Compiled modules must be written: else torch is compiled again in every kernel.
export PYTHONDONTWRITEBYTECODE =
# Waiting threads that spin make two test processes many times slower.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TQDM_DISABLE=1
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout 120 --dist loadfile
# sitecustomize.py in there closes the network inside the kernels too.
OFFLINE := PYTHONPATH=$(CURDIR)/tests/no_network
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)
INPUTS := pyproject.toml requirements/constraints.txt tools/setup_env.py

.DEFAULT_GOAL := help
.PHONY: help lab test check unit notebooks lint format figures build gallery audit \
	doctor browser-test bench lock clean setup

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

$(VENV)/.ready-notebooks: $(INPUTS)
	$(PYTHON) tools/setup_env.py --venv $(VENV) --extras notebooks
	@touch $@

$(VENV)/.ready-dev: $(INPUTS)
	$(PYTHON) tools/setup_env.py --venv $(VENV) --extras dev,ref,teach
	@touch $(VENV)/.ready-notebooks $@

$(VENV)/.ready-browser: $(VENV)/.ready-dev
	$(PYTHON) tools/setup_env.py --venv $(VENV) --extras dev,ref,teach,browser
	@touch $@

setup: $(VENV)/.ready-dev  ## make .venv with all that the tests need

lab: $(VENV)/.ready-notebooks  ## open the course in JupyterLab
	$(BIN)/jupyter lab $(ROOT_FLAG) $(LAB_FLAGS) notebooks/ch00_start_here.ipynb

test: $(VENV)/.ready-dev  ## all tests: style, units, exercises, every notebook
	$(MAKE) lint
	$(TEST_ENV) $(PY) -m pytest -q -n $(WORKERS) tests \
	  --cov=diffedu --cov-report=term --cov-fail-under=95
	$(TEST_ENV) $(PY) tools/build.py --check
	$(MAKE) notebooks

unit: $(VENV)/.ready-dev  ## the unit tests only, without the slow ones
	$(TEST_ENV) $(PY) -m pytest -q -n $(WORKERS) -m "not slow" tests

notebooks: $(VENV)/.ready-dev  ## run every chapter and every solution, offline
	$(TEST_ENV) $(OFFLINE) $(PY) -m pytest -q -n $(WORKERS) $(NBVAL) \
	  notebooks solutions

check: unit  ## unit tests and the chapters that changed, in under four minutes
	@changed=$$($(PY) tools/build.py --changed) || exit 1; \
	if [ -z "$$changed" ]; then echo "no chapter changed"; else \
	  $(TEST_ENV) $(OFFLINE) $(PY) -m pytest -q -n $(WORKERS) $(NBVAL) $$changed; fi

lint: $(VENV)/.ready-dev  ## style of all Python files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check diffedu tests tools benchmarks

format: $(VENV)/.ready-dev  ## put the style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format diffedu tests tools benchmarks

build: $(VENV)/.ready-dev  ## run the changed chapters, make notebooks and exercises
	$(TEST_ENV) $(PY) tools/build.py

figures: $(VENV)/.ready-notebooks  ## draw every figure into figures/
	$(BIN)/diffedu figures --all --out figures

gallery: $(VENV)/.ready-dev  ## docs/gallery.md from the receipts (each build does it)
	$(PY) tools/gallery.py

audit: $(VENV)/.ready-dev  ## the budgets that keep the course small
	$(PY) tools/audit.py

doctor: $(VENV)/.ready-notebooks  ## what this machine has, and what to do about the rest
	$(PY) -P diffedu/doctor.py

browser-test: $(VENV)/.ready-browser  ## chapter 1 in a real browser (needs Chromium)
	$(TEST_ENV) $(PY) tests/browser/run.py

bench: $(VENV)/.ready-dev  ## cost of a sampler's step and of training, side by side
	$(TEST_ENV) $(PY) benchmarks/run.py

lock: $(VENV)/.ready-dev  ## make requirements/constraints.txt again (needs uv)
	env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(PY) -m uv pip compile -q --universal \
	  --all-extras --python-version 3.11 --no-header --no-annotate \
	  -c requirements/torch-pin.txt pyproject.toml -o requirements/constraints.txt

clean:  ## remove what can be made again, .venv too
	rm -rf $(VENV) build dist figures runs htmlcov .pytest_cache .ruff_cache \
	  .hypothesis .coverage .coverage.* diffedu.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
