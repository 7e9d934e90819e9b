"""Shapes, facts and values of the calls that a live model makes."""
