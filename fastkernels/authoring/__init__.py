"""What the author of a kernel is given: stubs to fill, tasks extracted from models."""
