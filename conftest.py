"""What pytest leaves out of the package's and the tests' examples."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["numba_rmsprop/torch", "tests/torch_twins.py"]
