"""A small network in the place and with the structure of Metric3D, our own code: what its adapter needs."""
