"""Checkpoints: written, validated, read, rotated."""
