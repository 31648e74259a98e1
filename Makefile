# `make help` lists the targets. `make test` runs what CI runs, from a bare clone.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
CACHE := $(or $(VOICEPOD_CACHE),$(HOME)/.cache/voicepod)
export MYPY_CACHE_DIR := $(CACHE)/mypy
# One more than cores, because talks wait for their sound; more than four have nothing left to share.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))
# Tests start hundreds of Pythons: without bytecode on the disk each would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## system packages (as root), virtual environment with the tools, models
	@scripts/setup.sh dev

run:  ## serve on port 7860; prints the link to open
	@./container_startup.sh

check: setup  ## ruff, mypy, import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

fmt: setup  ## format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test: check  ## all that CI runs: check, unit, contract, integration, e2e
	VOICEPOD_REQUIRE_MODELS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test-fast: setup  ## unit and integration tests without real models and browser
	$(PYTHON) -m pytest -m "not models and not e2e"

bench: setup  ## latency of the conversation engine with fixed-delay engines
	$(PYTHON) -m benchmarks.conversation --fixed

profile: setup  ## the same under cProfile, into out/
	@mkdir -p out
	$(PYTHON) -m cProfile -o out/conversation.prof -m benchmarks.conversation --fixed --turns 10

lock:  ## write requirements/gpu.lock anew (needs uv)
	@scripts/lock.sh

docs: setup  ## write docs/configuration.md anew
	$(PYTHON) -m scripts.config docs

.PHONY: help setup run check fmt test test-fast bench profile lock docs
