"""One step: looked at, clipped, launched."""
