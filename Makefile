.PHONY: help setup demo test check bench clean
PY := .venv/bin/python
export PYTHONDONTWRITEBYTECODE := 1

help:
	@echo "make demo    the three tiers on this machine, two minutes"
	@echo "make test    every test (under ten minutes on two cores)"
	@echo "make check   ruff, mypy, import rules"
	@echo "make bench   the figures that the README names"
	@echo "make setup   .venv with the pinned packages, Mosquitto (the others call it)"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt scripts/setup
	@scripts/setup

demo: .venv/ready
	@.venv/bin/emo demo $(ARGS)

test: .venv/ready
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

check: .venv/ready
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

bench: .venv/ready
	@$(PY) -m bench.tap
	@$(PY) -m bench.wire
	@$(PY) -m bench.svcca
	@$(PY) -m bench.updates
	@$(PY) -m bench.cache
	@$(PY) -m bench.ingest
	@$(PY) -m bench.locks
	@$(PY) -m bench.simulate
	@$(PY) -m bench.serve
	@$(PY) -m bench.demo

clean:
	rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
