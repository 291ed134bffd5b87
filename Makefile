# Everything a fresh clone needs is made by these targets; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What constrains the versions that development installs: constraints/lowest.txt, or nothing.
CONSTRAINTS ?=
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# What meets the machine first: the command's two streams, fonts, drawings, files.
QUICK := tests/engine/test_cli*.py tests/engine/test_images.py tests/test_constraints.py \
    tests/model_kit/test_blas.py tests/model_kit/test_models.py tests/model_kit/test_save.py

.PHONY: chat test quick check setup bench docs clean

chat: $(VENV)/.installed
	@$(BIN)/sightline chat

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -rs $(QUICK)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed-dev

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-dev
	$(BIN)/python scripts/bench.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(addprefix --constraint ,$(CONSTRAINTS)) -e ".[dev,parity]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info
