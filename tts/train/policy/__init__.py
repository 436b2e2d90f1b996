"""`tts sft` and `tts rl`: train a policy by fine-tuning and by reinforcement learning."""
