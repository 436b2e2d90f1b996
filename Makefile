# The two commands of a newcomer: `make run` and `make test`. Both make the environment first, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test check lint docs real engines tokenizers bench figures reproduce env clean

run: $(VENV)/.run
	$(BIN)/tts run --strategy bon --n 16

# the fast tests; models this small gain more from a second process than from a second thread
test: $(VENV)/.dev
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

# what CI runs, but for the real engines: every test, the style, the types and the import rules
check: lint docs tokenizers
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the site, into site/; a warning is an error. The variable silences an advertisement of mkdocs-material's
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# a real model in the embedded engine, vLLM and SGLang on the CPU: ten minutes to install, once
real: $(VENV)/.dev
	VENV=$(VENV) scripts/test-real-engines.sh

# vLLM and SGLang alone, without running their tests
engines:
	scripts/test-real-engines.sh --install vllm sglang

# real tokenizers for the tests, which are skipped, loudly, where these cannot be had
tokenizers:
	-@scripts/real-tokenizers.sh

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/embedded.py
	$(BIN)/python benchmarks/prefixes.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/grading.py
	$(BIN)/python benchmarks/select_memory.py

# the tables and pictures of the docs, from the commands that they name; `make figures CHECK=1` only compares
figures: $(VENV)/.dev
	$(BIN)/python scripts/figures.py $(if $(CHECK),--check)

# the paper's findings in miniature: half an hour on two cores; goes on where it was stopped
reproduce: $(VENV)/.train
	$(BIN)/python -m tts.reproduce

env: $(VENV)/.dev

# torch goes first: a plain install then finds a CPU build where there is one, and later packages keep it
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tts needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.train: $(VENV)/.run pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train]"
	touch $@

$(VENV)/.docs: $(VENV)/.run pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

$(VENV)/.dev: $(VENV)/.run pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venvs build dist site *.egg-info
