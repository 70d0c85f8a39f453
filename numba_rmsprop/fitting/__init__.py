"""Scientific fitting: a method for scipy.optimize.minimize, and thousands of fits at once."""
