"""Whole jobs: a benchmark solved, a file scored, a sweep over N."""
