"""Training, tasks and benchmarks of CompMem: how the weights that ship were made, and how results were measured.

`compmem` never imports this package. `compmem train` and `compmem bench` load it when they are called.
"""
