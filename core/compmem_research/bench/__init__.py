"""Benchmarks: measurements, baselines and reports."""
