"""Ranks of MPI, and gradients that are summed over them."""
