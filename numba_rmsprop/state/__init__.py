"""What is kept of each variable: slots, row clocks, what rows have missed, names and owners."""
