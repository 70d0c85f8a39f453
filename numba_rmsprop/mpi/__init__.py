"""Ranks, and gradients that are summed over them."""
