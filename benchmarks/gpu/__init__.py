"""Benchmarks that need a GPU: whether it agrees with the CPU, how fast it is, and what training on it reaches."""
