"""Training (arXiv 2506.18896): label traces, train a PRM on them, select data with it, improve a policy by SFT and RL."""
