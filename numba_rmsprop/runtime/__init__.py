"""How a call is made whole: locks, signal handlers held off, launches, and warnings at the caller's line."""
