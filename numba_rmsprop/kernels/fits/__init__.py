"""Compiled loops of many small fits."""
