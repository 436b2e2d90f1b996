"""Grading of final answers: reading them, comparing them, and doing so in processes that can be killed."""
