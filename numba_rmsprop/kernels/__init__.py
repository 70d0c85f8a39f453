"""Every compiled function, and nothing but: plain loops over arrays that raise nothing."""
