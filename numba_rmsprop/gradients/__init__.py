"""Gradients of every accepted kind, checked and converted."""
