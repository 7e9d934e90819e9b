"""Tasks of level 4."""
