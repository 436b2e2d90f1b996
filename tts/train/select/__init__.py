"""`tts select`: the best traces of a pool."""
