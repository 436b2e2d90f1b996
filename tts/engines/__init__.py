"""Generators: one backend a file, none of them known to a strategy by name."""
