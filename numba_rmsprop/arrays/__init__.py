"""Arrays and numbers as callers hand them over."""
