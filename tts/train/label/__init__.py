"""`tts label`: step and trajectory rewards as training targets (arXiv 2506.18896, section 3)."""
