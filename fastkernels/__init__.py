"""fastkernels."""
