"""Cannot be imported: not a case to be left out, a case that scores 0."""

CAUGHT_AS = ("IMPORT_ERROR",)

raise ImportError("needs a library that is not there")
