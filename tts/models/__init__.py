"""Checkpoints and tokenizers: finding and loading them, and writing prompts for them."""
