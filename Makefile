# Everything is installed into .venv and .venv-oldest beside this file; nothing else on the machine is touched.
# The stamp files in them say what has been installed: they are renewed when pyproject.toml changes.

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest mutants wheel docs bench gpu lint format clean

BIN := .venv/bin
INSTALL = $(BIN)/uv pip install --python $(BIN)/python

# When the Python under .venv has gone (an upgrade of the machine removes it), the stamps are no longer true.
$(shell for venv in .venv .venv-oldest; do test -x $$venv/bin/python || rm -f $$venv/.stamp-*; done)

help: ## show this list
	@echo "usage: make TARGET        (PYTHON=/path/to/python3 chooses the Python, 3.11 or newer)"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | \
	    while IFS='	' read -r target text; do printf '  make %-11s %s\n' "$$target" "$$text"; done

demo: .venv/.stamp-demo ## train and attack on handwritten digits, then write runs/demo/report.html
	$(BIN)/adv-train demo --out runs/demo

test: lint ## check format, lint, types and imports, then run the tests
	$(BIN)/python -m compileall -q blo applications benchmarks # once, not in each of the processes that tests start
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-oldest: test .venv-oldest/.stamp-test ## `make test`, then the tests on the oldest releases that pyproject.toml admits
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses auto --dist worksteal

N ?= 40
SEED ?= 1
mutants: .venv/.stamp-test ## list random defects that no test notices; N=40 SEED=1 PARTS='blo adv_train' OUT=PATH
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutations.sample $(N) --seed $(SEED) \
	    $(if $(PARTS),--parts $(PARTS)) $(if $(OUT),--out $(OUT)) $(ARGS)

wheel: .venv/.stamp-test ## build the wheel into dist/, having installed it into empty environments and used it
	$(BIN)/python .ci/wheel.py

lint: .venv/.stamp-test ## the checks of `make test` without the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: .venv/.stamp-test ## rewrite the code in the project's format and apply safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.stamp-docs ## build the documentation into site/; any warning fails
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict

bench: .venv/.stamp-bench ## race against other libraries and hand-written floors; ARGS='ridge --device cuda' chooses
	$(BIN)/python -m benchmarks $(ARGS)

# A machine with a GPU may have no network and a torch of its own: then PYTHON=python3 uses what is installed there.
DATA ?=
MINUTES ?= 9
gpu: $(if $(PYTHON),,.venv/.stamp-demo) ## prove and measure everything on a GPU; DATA=imagefolder:PATH trains, MINUTES=9
	PYTHONPATH=$(CURDIR):$(CURDIR)/applications $(or $(PYTHON),$(BIN)/python) -m benchmarks.gpu \
	    --minutes $(MINUTES) $(if $(DATA),--data $(DATA)) $(ARGS)

clean: ## remove .venv, .venv-oldest, site/ and the tools' caches; runs/ stays
	rm -rf .venv .venv-oldest site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

# A candidate is tried by running it: a name on the PATH may be too old, a shim for nothing, or lack ensurepip.
$(BIN)/python:
	@set -- python3 python3.14 python3.13 python3.12 python3.11; \
	if [ -n "$(PYTHON)" ]; then set -- "$(PYTHON)"; fi; \
	for python do \
	    if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "creating .venv with $$("$$python" --version)"; \
	        exec "$$python" -m venv --clear .venv; \
	    fi; \
	done; \
	echo "error: no Python 3.11 or newer with its venv module among: $$*." \
	    "Install one (on Debian and Ubuntu also python3-venv) or run: make PYTHON=/path/to/python3 ..." >&2; \
	exit 1

.venv/.stamp-uv: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

.venv/.stamp-demo: .venv/.stamp-uv pyproject.toml
	$(INSTALL) --editable '.[adv-train]'
	@touch $@

# Compiled once: the tests start about a hundred processes, and not every system lets Python keep what it compiles.
.venv/.stamp-test: .venv/.stamp-uv pyproject.toml
	$(INSTALL) --compile-bytecode --editable '.[adv-train,test]'
	@touch $@

# Lowest bounds for what pyproject.toml names, the newest that goes with them for the rest.
.venv-oldest/.stamp-test: .venv/.stamp-uv pyproject.toml
	$(BIN)/uv venv --quiet --clear --python 3.11 .venv-oldest
	$(BIN)/uv pip install --python .venv-oldest/bin/python --resolution lowest-direct \
	    --compile-bytecode --editable '.[adv-train,test]'
	@touch $@

.venv/.stamp-docs: .venv/.stamp-uv pyproject.toml
	$(INSTALL) --editable '.[docs]'
	@touch $@

# boat-torch asks for NumPy 1, which blo does not run on, but works with NumPy 2. A peer that cannot be had is absent.
.venv/.stamp-bench: .venv/.stamp-uv pyproject.toml
	$(INSTALL) --editable '.[bench]'
	-$(INSTALL) --no-deps boat-torch==1.1.1
	@touch $@
