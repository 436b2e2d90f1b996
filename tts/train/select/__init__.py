"""`tts select`: choose the best traces of a pool to train on (arXiv 2506.18896, offline data selection)."""
