"""Reward models: what rates candidates."""
