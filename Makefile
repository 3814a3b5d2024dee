# Everything from a fresh machine: `make demo` and `make test` build the environment in .venv when it is missing or
# out of date, and use it as it is otherwise. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# Only here is torch pinned (pyproject.toml says which versions work). It goes in first and is named again beside the
# package, so that no dependency can bring another build.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One thread for each worker: two workers with a thread pool each would fight over the same cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# The stamp holds the folder it was made for: an environment moved or copied along with the repository would go on
# importing the old folder's code, so it is made anew, as is one of an old Python or without pip.
PLACE := $(shell cat $(STAMP) 2>/dev/null)
ifneq ($(PLACE),$(CURDIR))
.PHONY: $(STAMP)
endif
USABLE := import pip, sys; sys.exit(sys.version_info < (3, 11) or "$(PLACE)" not in ("", "$(CURDIR)"))

.DEFAULT_GOAL := help
.PHONY: help env test slow demo lint types docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) TORCH=$(TORCH)"

env: $(STAMP) ## make the environment in .venv, or bring it up to date
	@echo "$(VENV) is ready"

$(STAMP): pyproject.toml Makefile
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No $(PYTHON) on this machine: install Python 3.11 or newer, or name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "pathline needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1): name another with make PYTHON=..."; \
	  exit 1; }
	@$(BIN)/python -c '$(USABLE)' 2>/dev/null || { \
	  echo "[1/3] environment in $(VENV)"; $(PYTHON) -m venv --clear $(VENV); } || { \
	  echo "$(PYTHON) cannot make an environment in $(VENV): it needs its venv module (Debian: python3-venv)"; exit 1; }
	@echo "[2/3] $(TORCH) (the largest part: a few minutes on a slow line)"
	@$(PIP) install -qq '$(TORCH)'
	@echo "[3/3] pathline in editable mode and its dependencies"
	@$(PIP) install -qq '$(TORCH)' -e '.[dev]'
	@$(BIN)/python -c 'import sys, torch; print("ready: Python", sys.version.split()[0], "torch", torch.__version__)'
	@echo '$(CURDIR)' > $@

test: $(STAMP) ## every test but the slow ones
	$(PYTEST) -n $(WORKERS) --dist worksteal

slow: $(STAMP) ## the minutes-long tests, for a release
	$(PYTEST) -n $(WORKERS) --dist worksteal -m slow

demo: $(STAMP) ## train on real digits, sweep, report: out/demo/
	$(BIN)/pathline demo

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .

types: $(STAMP) ## mypy
	$(PYTEST) -q -k types tests/test_repository_quality.py

docs: $(STAMP) ## write the table in README.md and the pages of docs/ anew (minutes)
	@grep -q '<!-- methods:begin -->' README.md && grep -q '<!-- methods:end -->' README.md || { \
	  echo "README.md has no <!-- methods:begin --> ... <!-- methods:end --> to fill"; exit 1; }
	@mkdir -p out && $(BIN)/pathline methods --format markdown > out/methods.md
	@awk '/<!-- methods:end -->/ { skip = 0 } !skip { print } \
	  /<!-- methods:begin -->/ { skip = 1; while ((getline line < "out/methods.md") > 0) print line }' \
	  README.md > README.md.new && mv README.md.new README.md
	@echo "README.md: table of methods written"
	$(BIN)/pathline zoo --quiet --out docs/zoo
	$(BIN)/python tests/golden_table.py --out docs/goldens.md
	$(BIN)/pathline agree --quiet --out docs/diffusers.md
	$(BIN)/python -c "from pathlib import Path; from pathline.training.elbo_view import update_page as write; \
	  write(Path('docs/losses.md'))"

clean: ## remove the environment, caches and build products; out/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find interpolants samplers training evals tests -name __pycache__ -type d -prune -exec rm -rf {} +
