"""How candidates run: declarations, loading, building in the place of interfaces."""
