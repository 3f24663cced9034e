"""Every operation with every fault at every one of its calls."""
