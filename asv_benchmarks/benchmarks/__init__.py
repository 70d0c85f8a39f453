"""Benchmarks of numba_rmsprop, of its peers, and of what the machine allows."""
