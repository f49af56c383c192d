.PHONY: help demo test gpu lint docs format clean
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.installed-docs
ARGS ?=
BUDGET ?= 840
# Processes of the tests: a file goes to one of them, which computes on one thread.
WORKERS ?= 2
CHECKOUT ?= $(SALT_SELF_FORCING)
# Another file, or another PYTHON, needs a .venv of its own: make clean first.
REQUIREMENTS ?= requirements-dev.txt

help:
	@echo "make demo    train a tiny video teacher, distil it with DMD and with Salt, compare"
	@echo "make test    run all tests, in WORKERS processes (2)"
	@echo "make gpu     all that wants a GPU, in order of worth, within BUDGET seconds (840)"
	@echo "make lint    ruff (check, format) and mypy --strict over src"
	@echo "make docs    build the documentation site, strictly, into site/"
	@echo "make format  let ruff mend what it can"
	@echo "make clean   remove .venv, outputs and caches"
	@echo "Options of the demo go into ARGS: make demo ARGS='--seed 1 --out outputs/seed-1'"

# torch first: left to the resolver, a plain 'torch' may pull gigabytes of CUDA packages.
$(STAMP): pyproject.toml $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' $(REQUIREMENTS))
	$(BIN)/python -m pip install --quiet -r $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(STAMP)

# The site is built from the sources as they lie: it needs neither torch nor the package.
$(DOCS): requirements-docs.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	@touch $(DOCS)

demo: $(STAMP)
	$(BIN)/python -m examples.tiny_video $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# All that wants a GPU, in order of worth, within BUDGET seconds; in PYTHON's own environment, whose
# torch knows the GPU. SALT_SELF_FORCING (or CHECKOUT) names the trainer that is run at real size.
gpu:
	$(PYTHON) -m benchmarks.gpu --budget $(BUDGET) $(if $(CHECKOUT),--checkout $(CHECKOUT)) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The theme prints a warning about a MkDocs 2 that requirements-docs.txt does not install.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs site .pytest_cache .mypy_cache .ruff_cache
