"""End to end: a patched model against an unpatched production run, arms in processes of their own, in turn."""
