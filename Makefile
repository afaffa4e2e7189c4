# `make demo` and `make test` set everything up first; every target uses .venv/.
# PYTHON is the interpreter that .venv/ is made with: python3 if it is 3.10 to 3.12, else the
# newest of these that runs.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python

.PHONY: install demo study test fast check bench docs clean

install:  ## environment, pinned dependencies, weights
	@$(or $(PYTHON),$(error no Python 3.10 to 3.12 found; name one: make $@ PYTHON=<path>)) \
	scripts/install.py

demo: install  ## the whole pipeline on real weights and data; prints the report's path
	@$(RUN) scripts/pipeline.py

study: install  ## every setting, three seeds each
	@$(RUN) scripts/pipeline.py -m experiment=study
	@$(RUN) scripts/results_table.py "input='runs/study/*/results.json'" \
	merged=benchmarks/study.json output_dir=docs name=study_scores

test: install  ## all tests, offline
	@HF_HUB_OFFLINE=1 $(RUN) -m pytest $(ARGS)

fast: install  ## the tests of at most five seconds
	@HF_HUB_OFFLINE=1 $(RUN) -m pytest -m "not slow" $(ARGS)

check: install  ## formatting, lint, types
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

bench: install  ## measures alignment on this machine, against a plain implementation
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(RUN) $$file || exit 1; done

docs: install  ## tables and figures of README and docs/ from benchmarks/*.json
	@$(RUN) scripts/results_table.py input=benchmarks/study.json output_dir=docs name=study_scores

clean:  ## removes results and caches; keeps .venv/ and assets/
	rm -rf runs outputs multirun .pytest_cache .mypy_cache .ruff_cache
