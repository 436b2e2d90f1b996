"""Benchmarks, statistics and what is shown of them."""
