"""The state of each variable: slots, row clocks, skipped steps, names and references."""
