"""Scale-out: the entries of a scenario as jobs, on the devices of this machine or of a Ray cluster."""
