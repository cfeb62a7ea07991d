"""Real architectures and random programs, put through discovery: `make zoo` and `make fuzz`."""
