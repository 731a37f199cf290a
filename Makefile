# Two commands do all the set-up on a fresh machine: `make demo` (the main job) and `make test`.
.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test check bench results clean
export PYTHON
unexport PYTHONDONTWRITEBYTECODE # the commands start many processes, each of which would compile torch's modules again

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install:  ## .venv with everything but the development tools
	@.ci/bootstrap all

install-dev:  ## .venv with the development tools as well
	@.ci/bootstrap dev

demo: install  ## collect, evaluate and report on a simulated robot, in minutes
	@.venv/bin/embodied demo

test: install-dev  ## the whole test suite, on two cores (ARGS="-n 0 -x tests/data" chooses otherwise)
	@.venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

check: install-dev  ## format, lint, types, import direction, lengths
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/python -m pytest -q tests/test_architecture.py

bench: install  ## every benchmark, JSON under runs/bench
	@for name in sim data train policy; do .venv/bin/embodied bench $$name out=runs/bench/$$name.json || exit 1; done

clean:  ## removes .venv and caches, never runs or data
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
