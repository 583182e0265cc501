# make demo: the main job on real logs.  make test: every test.  Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-out

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs constraints clean

help:
	@echo "make demo   logs -> features -> model -> ranked and verified schedules for an unseen network"
	@echo "make test   all tests"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation as pages, in docs/_build"
	@echo "make constraints  docker/constraints.txt anew: what the package index has for lorien[all] today"
	@echo "make clean  remove what demo and test made (.venv stays)"

# Bytecode is made of what is used, when it is used: of all that is installed it takes a minute and more.
export PYTHONDONTWRITEBYTECODE =
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check
# uv installs in a third of pip's time, but does not read pip's configuration: it is told the index of it, and where it fails
# (a proxy, a certificate that only pip knows of), pip installs.
INDEX = $${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(PIP) config get global.index-url 2>/dev/null)}}
install = UV_DEFAULT_INDEX="$(INDEX)" $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || $(PIP) install --quiet --no-compile $(1)

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 14) or sys.exit("Lorien needs Python 3.10 to 3.13, this is %s. Fix: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet uv

# The stamps say what is installed; they are older than setup.cfg when something has to be installed again.
.venv/demo.stamp: setup.cfg pyproject.toml | .venv/bin/uv
	$(call install,--editable '.[all]')
	@touch $@

.venv/test.stamp: setup.cfg pyproject.toml | .venv/bin/uv
	@$(MAKE) --no-print-directory --jobs 2 .venv/packages.stamp .venv/tools.stamp
	@touch .venv/demo.stamp $@

.venv/packages.stamp: setup.cfg pyproject.toml
	$(call install,--editable '.[test]')
	@touch $@

.venv/tools.stamp:
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix .venv/npm dynalite@4; fi
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; } \
			>/dev/null 2>&1 || echo "chromium could not be installed: the tests of pages will be skipped"; \
	else echo "no chromium, and no apt-get to install it as root: the tests of pages will be skipped"; fi
	@touch $@

demo: .venv/demo.stamp
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh datasets/demo.sh "$(OUT)"

# Two files at a time: much of the time is waiting, for servers, leases and deadlines.
test: .venv/test.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/unit/test_quality.py

docs: .venv/test.stamp
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

# In an environment of its own: .venv holds what the tests want as well.
constraints:
	rm -rf build/pins
	$(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install --quiet --disable-pip-version-check '.[all]'
	{ echo "# What lorien[all] was tested with, on Python $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'). The images install these versions."; \
	build/pins/bin/python -m pip freeze --exclude lorien; } >build/constraints.txt
	mv build/constraints.txt docker/constraints.txt

clean:
	rm -rf docs/_build docs/reference build dist ./*.egg-info $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
