"""Hyperparameters, and the numbers of one step."""
