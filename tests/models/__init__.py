"""Our own small definitions of known architectures: the full topology, tiny widths. Nothing here is copied."""
