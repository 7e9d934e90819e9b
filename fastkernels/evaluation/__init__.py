"""Evaluation: capture, bench, conflicts, end to end, reports."""
