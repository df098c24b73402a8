"""Benchmarks of blo: problems with known answers, and races against other libraries and hand-written floors.

`python -m benchmarks` runs them. Each benchmark is a function in a module of `benchmarks.answers` or
`benchmarks.against`, registered by `benchmarks.registry.benchmark`.
"""
