"""What pytest leaves out of the package's examples."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["numba_rmsprop/torch"]
