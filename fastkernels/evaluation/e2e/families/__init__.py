"""How each family of models is served, timed and judged."""
