"""Benchmarks of blo: known answers, and races against other libraries and against hand-written floors.

`python -m benchmarks` runs them; each is a function registered by `benchmarks.registry.benchmark` in a module of
`benchmarks.answers` or `benchmarks.against`.
"""
