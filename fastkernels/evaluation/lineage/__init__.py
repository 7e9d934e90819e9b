"""Lineage: evaluations kept as MLflow runs, and compared over time."""
