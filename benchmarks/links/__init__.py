"""Training over thin links: a relay that is one, workers that train over it, and a simulation of many of them."""
