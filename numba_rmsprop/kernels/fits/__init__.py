"""Many small fits in one launch."""
