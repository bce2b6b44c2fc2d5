"""A small network in the place and with the structure of Video-Depth-Anything, our own code: what its adapter needs."""
