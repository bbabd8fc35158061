# Everything below runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Beside it, .venv-aot has the compilers of accelerators that this machine need not have.
AOT := .venv-aot

.PHONY: demo test test-aot lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests

test-aot: $(AOT)/.installed
	$(AOT)/bin/python -m pytest -q -n 2 --dist worksteal tests_aot

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) $(AOT) build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tunekit needs Python 3.11 or newer, and '$(PYTHON)' is not that." \
	       "Install one and run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON)' cannot make a virtual environment." \
	       "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# A stamp per set of extras: installed once, and again when pyproject.toml changes.
$(VENV)/.demo: EXTRAS := demo
$(VENV)/.test: EXTRAS := demo,parquet,test
$(VENV)/.dev: EXTRAS := dev
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

# The packages of .venv are seen from it through a .pth file; only what they lack is installed.
$(AOT)/.installed: pyproject.toml $(VENV)/.test
	$(BIN)/python -m venv $(AOT)
	$(BIN)/python -c "import sysconfig; print(f\"import site; site.addsitedir('{sysconfig.get_path('purelib')}')\")" \
	  > "$$($(AOT)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/test_packages.pth"
	$(AOT)/bin/python -m pip install --quiet --editable ".[tpu-plan,gpu-plan]"
	@touch $@
