"""A simulated fleet: the product's own nodes on a network in memory."""
