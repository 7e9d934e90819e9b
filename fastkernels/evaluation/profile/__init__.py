"""Command lines of profilers, and the numbers in what they print."""
