"""Checkpoints and tokenizers: where they lie, how they are loaded, and how prompts are written for them."""
