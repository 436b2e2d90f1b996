"""`tts train-prm`: a process reward model trained on labelled traces."""
