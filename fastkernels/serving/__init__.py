"""Inside serving engines: what an operator asks for, the patch of each worker, and its proof."""
