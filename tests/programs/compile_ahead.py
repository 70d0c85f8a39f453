"""Compile kernels ahead, as ``python -m numba_rmsprop.compile`` does."""

from numba_rmsprop.compile import main

main()
