"""Training and sampling at Tinker, through its own Python library."""
