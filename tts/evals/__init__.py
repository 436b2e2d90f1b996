"""Benchmarks, and statistics of runs over them."""
