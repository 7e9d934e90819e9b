"""Tasks of level 2."""
