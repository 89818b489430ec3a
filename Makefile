# One command for each chore; `make help` lists them.
# Everything works from .venv, which is made from the lock files and kept until they change.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 run` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes
COMPILE := $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 \
	--custom-compile-command 'make lock'

# Tests run in parallel (tests/conftest.py says how many at once); `make test PYTEST_ARGS="-m e2e -n 0"` chooses otherwise.
PYTEST_ARGS ?= -n auto --dist worksteal

# They add and remove network interfaces, at which a browser drops its connections.
NETWORK_TESTS := tests/e2e/test_several_hosts.py

# What has a long form; `make chaos CHAOS_TESTS=tests/chaos/test_soak.py` chooses one of them.
CHAOS_TESTS ?= tests/chaos tests/integration/test_embedded_faults.py \
	tests/integration/api/test_description.py tests/integration/test_hostile_pages.py

CSS := app/static/dist/app.css
CSS_SOURCES := $(wildcard app/static/src/*.css app/static/src/*.js app/static/js/*.js tailwind.config.js) \
	$(shell find app/templates -name '*.html' 2>/dev/null)

.PHONY: help
help: ## List the chores
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: run
run: .venv/.installed $(CSS) ## Start database, web server (http://localhost:5001) and one worker
	@exec $(BIN)/python run.py --worker

.PHONY: test
test: check .venv/.browser $(CSS) ## Install what is needed and run every check and every test
	$(BIN)/python -m pytest $(PYTEST_ARGS) --ignore $(NETWORK_TESTS)
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(NETWORK_TESTS) || [ $$? -eq 5 ]  # 5: none was chosen

# Rules without a database, and each SQL function against the state table.
FAST_TESTS := tests/unit tests/integration/test_state_table.py tests/integration/test_send.py tests/integration/test_claim.py \
	tests/integration/test_settle.py tests/integration/test_operators.py tests/integration/api/test_tsq.py

.PHONY: test-fast
test-fast: check ## Every check and the quick tests, for work in between
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(FAST_TESTS)

.PHONY: chaos
chaos: .venv/.installed-dev $(CSS) ## The long forms of the fault tests, hours of them; docs/testing.md shortens them
	CHAOS=long $(BIN)/python -m pytest --durations=0 $(CHAOS_TESTS)

.PHONY: check
check: lint types layers security ## Everything but the tests

.PHONY: lint
lint: .venv/.installed-dev ## Style and likely mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: .venv/.installed-dev ## Types, strict
	$(BIN)/mypy

.PHONY: layers
layers: .venv/.installed-dev ## Who may import whom
	$(BIN)/lint-imports

.PHONY: security
security: .venv/.installed-dev ## Likely security mistakes
	$(BIN)/bandit --quiet --severity-level medium --configfile pyproject.toml --recursive .

.PHONY: audit
audit: .venv/.installed-dev ## Known vulnerabilities in the pinned packages (asks a service on the network)
	@found=$$($(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements-dev.lock \
		--progress-spinner off --timeout 15 2> >(tail -n 1 >&2)) && echo "$$found" || { \
		[ -z "$$found" ] || { echo "$$found"; exit 1; }; \
		echo "NOT AUDITED: the service gave no answer. Run make audit where there is a network."; }

.PHONY: format
format: .venv/.installed-dev ## Rewrite the Python files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: css
css: $(CSS) ## Build the style sheet

.PHONY: migrate
migrate: .venv/.installed ## Create the database if missing, install PGMQ, apply the migrations
	$(BIN)/python -m app.database migrate

.PHONY: stop
stop: .venv/.installed ## Stop the embedded database
	$(BIN)/python -m app.database stop

.PHONY: venv
venv: .venv/.installed-dev ## Only make .venv, with the tools for development

.PHONY: lock
lock: .venv/.installed-dev ## Write the lock files anew from requirements.txt and requirements-dev.txt
	$(COMPILE) requirements.txt --output-file requirements.lock
	$(COMPILE) requirements-dev.txt --constraint requirements.lock --output-file requirements-dev.lock

# Short forms; each script's --help tells the long ones. An idle machine makes the better figures.
.PHONY: bench
bench: .venv/.installed-dev ## Measure speed and memory in short forms (about 15 minutes), for docs/performance.md
	$(BIN)/python -m benchmarks.noop --commands 60000 --batch-sizes 10 100 500
	$(BIN)/python -m benchmarks.ceiling --commands 80000
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.side_by_side --commands 60000
	$(BIN)/python -m benchmarks.send --bulk 100000 --single 4000
	$(BIN)/python -m benchmarks.latency --seconds 8
	$(BIN)/python -m benchmarks.obstacles --commands 60000 --millions 1
	$(BIN)/python -m benchmarks.reads --requests 20
	$(BIN)/python -m benchmarks.memory --seconds 30
	$(BIN)/python -m benchmarks.report

.PHONY: clean
clean: ## Remove what was built; keep the data in .data
	rm -rf .venv build commandbus.egg-info app/static/dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache test-results
	find . -name __pycache__ -not -path './.data/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found; name one with make PYTHON=..."; exit 1; }
	@echo "Creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Could not create .venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/.installed: requirements.lock | .venv/bin/python
	@echo "Installing the packages of $<"
	@$(INSTALL) --requirement $<
	@touch $@

.venv/.installed-dev: requirements-dev.lock requirements.lock | .venv/bin/python
	@echo "Installing the packages of $<"
	@$(INSTALL) --requirement $<
	@touch .venv/.installed $@

# The browser tests use the Chromium of the system where there is one.
.venv/.browser: .venv/.installed-dev
	@command -v chromium-headless-shell chromium chromium-browser google-chrome >/dev/null || \
		$(BIN)/python -m playwright install --only-shell chromium
	@touch $@

$(CSS): $(CSS_SOURCES) .venv/.installed
	@echo "Building $@"
	@$(BIN)/tailwindcss --input app/static/src/input.css --output $@ --minify
	@touch $@
