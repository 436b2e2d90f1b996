"""`tts label`: the step and trajectory rewards of arXiv 2506.18896, section 3, computed as training targets for a PRM."""
