"""Calls that take effect as a whole: locks, deferred signal handlers, launches, and warnings at the user's line."""
