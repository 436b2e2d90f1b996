"""`tts train-prm`: train a process reward model on labelled traces (arXiv 2506.18896)."""
