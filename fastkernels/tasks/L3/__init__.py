"""Tasks of level 3."""
