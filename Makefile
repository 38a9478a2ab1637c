.PHONY: help setup demo test check bench images chaos clean fleet-test
PY := .venv/bin/python
# Or each of many processes compiles EMO again: 0.9 s of processor.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make demo    the three tiers on this machine (half a minute, once installed)"
	@echo "make test    every test (under ten minutes on two cores)"
	@echo "make check   ruff, mypy, import rules, ansible-lint"
	@echo "make bench   the figures that the README names"
	@echo "make images  every image, built and run without a container engine (root, Debian; half an hour)"
	@echo "make chaos   a fleet under 200 faults: does the run still end right? (five minutes)"
	@echo "make fleet-test  Ansible: folders as hosts, a fleet that trains over TLS (Linux, root; forty minutes)"
	@echo "make setup   .venv with the pinned packages, Mosquitto (the others call it)"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt scripts/setup
	@scripts/setup

demo: .venv/ready
	@.venv/bin/emo demo $(ARGS)

test: .venv/ready
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/ready
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache
	@cd ansible && PATH="$(CURDIR)/.venv/bin:$$PATH" ANSIBLE_HOME="$(CURDIR)/.venv/ansible" \
	  ansible-lint --offline --strict --nocolor -q

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
	@$(PY) -m bench.scale

images: .venv/ready
	@$(PY) docker/build_local.py --report docs/results/images.md $(ARGS)

chaos: .venv/ready
	@.venv/bin/emo chaos --seeds 4 --faults 50 --over 20 --out runs/chaos $(ARGS)

fleet-test: .venv/ready
	@scripts/fleet-test $(ARGS)

clean:
	rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
