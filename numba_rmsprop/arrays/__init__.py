"""Checks of arrays and numbers in arguments."""
