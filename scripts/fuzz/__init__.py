"""Random data sets, and whole commands on them."""
