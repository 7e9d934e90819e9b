"""The report of an evaluation: one page, Markdown or JSON."""
