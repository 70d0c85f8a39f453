# Everything from a bare machine with Python 3.11 or newer: each target makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
# Where torch for CPUs alone comes from; on Linux, PyPI's brings CUDA along.
TORCH_INDEX ?=
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup
WITH_TORCH := tests/torch tests/gradients/test_other_libraries.py numba_rmsprop/torch tests/runtime/test_processes.py::test_a_torch_data_loader_with_workers
# A cache does not tell checked kernels from others.
CHECK = $(if $(NUMBA_CACHE_DIR),NUMBA_CACHE_DIR=$(NUMBA_CACHE_DIR)-checked) NUMBA_BOUNDSCHECK=1
# Together they launch every kernel. Of the variants the plain one, and that with all slots.
CHECKED := $(addprefix tests/,kernels/test_bounds.py keyed/test_key_map.py stepping/test_exact.py stepping/test_norm_clipping.py runtime/test_launching.py \
  stepping/test_row_norms.py::test_the_same_bits_on_any_number_of_threads \
  keyed/test_keyed_table.py::test_the_least_frequent_are_hardly_counted_too_high) \
  -k "not (sparse_equals_dense and (True-False or False-True))"
# What runs other code as plain Python: kernels, and what calls them.
PLAIN := $(addprefix tests/,keyed stepping gradients state distributed fitting/test_curve_fit_many.py fitting/test_minimize_many.py)
# What many tests call is compiled once, and not by each of pytest's processes.
AHEAD := $(BIN)/python -m numba_rmsprop.compile --variants plain momentum centered momentum+centered --dtypes
# Chooses what searches for faults try; the tests print it.
SEED ?= 0

.PHONY: demo demo-torch demo-mpi compare bench bench-busy bench-peers test test-long test-long-part test-torch mutants soak fuzz lint clean

demo: .venv/with-examples  ## word vectors and a classifier of the documentation of NumPy and SciPy, and a map of decay times
	$(BIN)/python examples/word_vectors.py --out demo
	$(BIN)/python examples/sparse_classifier.py --out demo
	$(BIN)/python examples/decay_maps.py --out demo

demo-torch: .venv/with-examples .venv/with-torch  ## word vectors in PyTorch, beside SparseAdam
	$(BIN)/python examples/torch_embedding.py --out demo/torch

demo-mpi: .venv/with-examples .venv/with-mpi  ## word vectors on two processes, each with a part of the tables
	$(BIN)/mpiexec -n 2 $(BIN)/python examples/distributed_word_vectors.py --out demo/mpi

compare: .venv/with-bench  ## the same, beside gensim's Word2Vec and scikit-learn
	$(BIN)/python examples/word_vectors.py --out demo --compare
	$(BIN)/python examples/sparse_classifier.py --out demo --compare

bench: .venv/with-bench  ## ratios to what the machine allows, some minutes
	$(BIN)/python asv_benchmarks/ratios.py --first-use --out asv_benchmarks/bench.json

bench-busy: .venv/with-bench  ## steps beside other programs, which it starts itself, some minutes
	$(BIN)/python asv_benchmarks/busy.py

bench-peers: .venv-peers/installed  ## the same beside torch, TensorFlow, optax and FBGEMM
	.venv-peers/bin/python asv_benchmarks/ratios.py --out asv_benchmarks/bench-peers.json
	.venv-peers/bin/python asv_benchmarks/chart.py asv_benchmarks/bench-peers.json asv_benchmarks/bench-peers.png

test: export NUMBA_CACHE_DIR := $(or $(NUMBA_CACHE_DIR),$(CURDIR)/.numba_cache)
test: .venv/with-test  ## once compiled, once as plain Python, and the kernels with every index checked; 5 to 14 minutes on 2 cores
	rm -rf .numba_cache
	$(AHEAD) float32 & $(AHEAD) float64 & wait
	$(PYTEST)
	NUMBA_DISABLE_JIT=1 HYPOTHESIS_PROFILE=short $(PYTEST) $(PLAIN)
	$(CHECK) HYPOTHESIS_PROFILE=short $(PYTEST) $(CHECKED)

test-long: .venv/with-test  ## the long searches, and all tests in each of the three ways; an hour; SEED=1 tries other things
	TEST_SEED=$(SEED) $(PYTEST) -m long
	HYPOTHESIS_PROFILE=search $(PYTEST) -m hypothesis --hypothesis-seed=$(SEED)
	NUMBA_DISABLE_JIT=1 TEST_SEED=$(SEED) $(PYTEST) -m ""
	$(CHECK) $(PYTEST) $(CHECKED)

test-long-part: .venv/with-test  ## one in eight of the long searches; SEED says which, and what they try
	TEST_SEED=$(SEED) LONG_PART=8 $(PYTEST) -m long

test-torch: .venv/with-test .venv/with-torch  ## what asks PyTorch, which `make test` skips where it is not installed
	$(PYTEST) $(WITH_TORCH)
	NUMBA_DISABLE_JIT=1 $(PYTEST) tests/torch/test_half_precision.py
	$(CHECK) HYPOTHESIS_PROFILE=short $(PYTEST) tests/torch/test_half_precision.py

# Where it has neither mpi4py nor mpiexec, or no torch, it stops: a test that is skipped finds nothing.
mutants: .venv/with-test .venv/with-torch  ## slips in copies of the package, each of which a test must find, some 20 minutes
	$(BIN)/python tests/support/mutants.py

soak: .venv/with-test  ## ten million rows of random steps in constant memory, some minutes
	$(BIN)/python tests/support/soak.py

fuzz: .venv/with-fuzz  ## look for crashes and half-written calls, on Linux, some minutes for each target
	$(BIN)/python tests/support/fuzz.py --seconds 180 --corpus .fuzz

lint: .venv/with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-peers .fuzz .numba_cache demo

# A stamp for each set of extras; a changed pyproject.toml installs anew.
.venv/with-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

# Not an extra: which build of PyTorch it is to be is said here.
.venv/with-torch: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) torch==2.13.0
	touch $@

# An environment of its own, since the peers are large and bring their own ideas of versions.
.venv-peers/installed: pyproject.toml asv_benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement asv_benchmarks/peers.txt
	# It asks for nothing at run time that is not there, but names a torch of its own.
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps fbgemm-gpu-cpu==1.8.0
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
