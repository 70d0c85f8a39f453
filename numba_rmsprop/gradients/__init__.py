"""What a gradient may be, checked."""
