"""Colours of rewards."""

from __future__ import annotations


def reward_style(value: float | None) -> str:
    """From red (0) through yellow to green (1); none for what is no share."""
    if value is None or not 0 <= value <= 1:
        return ""
    red, green = min(1.0, 2 - 2 * value), min(1.0, 2 * value)
    return f"rgb({round(60 + 170 * red)},{round(60 + 150 * green)},70)"
