"""Tasks of level 1."""
