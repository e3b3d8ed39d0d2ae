# Each target sets up what it needs. `make help` lists them from the comments beside them.
PYTHON ?= python3
PORT ?= 8000
PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt
# a file's tests stay together, so that they share the services they start
TESTS = $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: run test test-fast coverage check browser clean help

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 14

run: $(VENV)/.run  ## serve on http://127.0.0.1:8000 until Ctrl-C (PORT=... for another port)
	@exec $(BIN)/sagan serve --port $(PORT)

test: $(VENV)/.test browser check  ## every check and test (PYTEST='...': more arguments of pytest's)
	$(TESTS) $(PYTEST)

test-fast: $(VENV)/.test  ## the tests that start no service, browser or training of their own
	$(TESTS) tests/unit -m 'not slow' $(PYTEST)

coverage: $(VENV)/.test browser  ## every test, then the statements that none of them ran
	$(TESTS) --cov $(PYTEST)

check: $(VENV)/.test  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# one on PATH, else Playwright's own, else Debian's
browser: $(VENV)/.test  ## install a browser for the tests of the page, where there is none
	@command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null \
	|| $(BIN)/python -m playwright install chromium \
	|| { apt-get update -qq && apt-get install -y -qq chromium-headless-shell; } \
	|| echo "No browser could be installed: the tests of the page will be skipped (in CI they fail)."

clean:  ## remove the environment and what builds leave
	rm -rf $(VENV) .sagan build dist *.egg-info

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "Python 3.11 or later is needed; choose one by: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) with PyTorch and the service: some minutes, and 5 GB, the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	|| { echo "venv is missing; on Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(INSTALL) -e '.[all]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) -e '.[all,test]'
	@touch $@
