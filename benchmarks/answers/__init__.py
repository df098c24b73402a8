"""Benchmarks with a known answer."""
