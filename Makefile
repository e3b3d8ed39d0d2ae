# make run: everything on http://127.0.0.1:8000.  make test: all checks.  Both set up what they need.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt

.PHONY: run test check browser clean help

help:
	@sed -n 's/^# *//;1p' Makefile

run: $(VENV)/.run
	@exec $(BIN)/sagan serve --port $(PORT)

test: $(VENV)/.test browser check
	$(BIN)/python -m pytest $(PYTEST)

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A browser for the tests of the page: one on PATH, else Playwright's own, else Debian's.
browser: $(VENV)/.test
	@command -v chromium chromium-browser google-chrome >/dev/null \
	|| $(BIN)/python -m playwright install chromium \
	|| { apt-get update -qq && apt-get install -y -qq chromium; } \
	|| echo "No browser could be installed: the tests of the page will be skipped (in CI they fail)."

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

clean:
	rm -rf $(VENV) .sagan build dist *.egg-info
