# Needs Python 3.11 or newer and make; everything else is installed into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup test test-more test-all samples fuzz ops models attacks demo bench crash powerloss faults guards clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("fedq needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

test: setup ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not more"

test-more: setup ## what takes longer: every model, every first call in a worker of its own, every fourth op of PyTorch's samples
	$(BIN)/python -m tests.plan.samples --every 4
	FEDQ_MORE=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "more or scaled"

test-all: setup ## every row of every test, however long it takes
	FEDQ_ALL=1 FEDQ_MORE=1 $(BIN)/python -m pytest -n auto --dist worksteal

samples: setup ## PyTorch's own samples of every op, on a worker, against eager, as docs/samples.md says
	$(BIN)/python -m tests.plan.samples

fuzz: setup ## 10,000 random functions as plans against eager; hostile calls of every op; 1,000,000 hostile files; 10,000 answers of a hostile worker
	FEDQ_FUZZ=10000 $(BIN)/python -m pytest -n auto -rP tests/plan/test_grammar.py
	$(BIN)/python -m tests.plan.fuzz --calls 300
	$(BIN)/python -m tests.fuzz_files --files 1000000 --processes 2
	FEDQ_ANSWERS=10000 $(BIN)/python -m pytest -rP --show-capture=stdout tests/attacks/test_worker_as_enemy.py -k random

ops: setup ## judge the op table for the torch in .venv: what is new, gone or changed is listed, fuzzed and stamped
	$(BIN)/python -m tools.judge_ops

models: setup ## every model of docs/models.md, built and compared with eager; 1 GB through a device
	FEDQ_MORE=1 $(BIN)/python -m pytest -n 2 tests/plan/test_models.py
	FEDQ_LARGE=1 $(BIN)/python -m pytest tests/plan/test_dtypes.py -k gigabyte

attacks: setup ## 1,000 hostile requesters: a share shows nothing of private bytes before an owner's word
	FEDQ_ATTACKS=1000 $(BIN)/python -m pytest -n auto tests/attacks/test_nothing_shows.py

demo: setup ## devices with real data, plans run on them, results checked
	@$(BIN)/python demo/run.py

bench: setup ## measure replay, round trips, calls a second, sizes
	@$(BIN)/python benchmarks/run.py

crash: setup ## kill -9 at every step: 100,000 times in memory, 1,000 with real workers (CRASH_DIR=a journalled disk: 2,000 there)
	$(BIN)/python -m tests.crash --kills 100000 --lanes 4
	$(BIN)/python -m tests.crash --kills 1000 --lanes 2 --worker
	FEDQ_KILLS=1 $(BIN)/python -m pytest tests/test_repeat.py
	$(if $(CRASH_DIR),$(BIN)/python -m tests.crash --kills 2000 --lanes 2 --where $(CRASH_DIR))

powerloss: setup ## every state a power cut can leave, by a model; and, as root, real cuts of ext4 and xfs
	$(BIN)/python -m tests.crash.powerloss
	$(BIN)/python -m tests.crash.cuts

faults: setup ## every step of the disk fails, once and for ever, with each error
	$(BIN)/python -m tests.crash.faults

guards: setup ## take each guard away in a copy and see who notices
	$(BIN)/python -m tests.crash.guards

clean: ## remove .venv, caches and the demo's folder
	rm -rf .venv .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find fedq tests demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
