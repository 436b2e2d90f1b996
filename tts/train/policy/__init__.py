"""`tts sft` and `tts rl`: a policy fine-tuned and reinforced."""
