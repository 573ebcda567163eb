"""Training, tasks and benchmarks of CompMem: how the shipped weights were made, and how results were measured.

`compmem` never imports this package. `compmem train` and `compmem bench` load it when they are called.
"""
