"""Production kernels as modules of the task interfaces: what a candidate has to beat."""
