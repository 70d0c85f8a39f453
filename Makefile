# Everything from a bare machine with Python 3.11 or newer: each target makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: demo compare test lint clean

demo: .venv/with-examples  ## train word vectors on the documentation of NumPy and SciPy
	$(BIN)/python examples/word_vectors.py --out demo

compare: .venv/with-bench  ## the same, beside gensim's Word2Vec
	$(BIN)/python examples/word_vectors.py --out demo --compare

test: .venv/with-test  ## once compiled, once as plain Python
	$(PYTEST)
	NUMBA_DISABLE_JIT=1 $(PYTEST)

lint: .venv/with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv demo

# A stamp for each set of extras; a changed pyproject.toml installs anew.
.venv/with-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
