"""What a GPU is needed for: that it computes what the CPU does, how fast, and what training on it comes to."""
