"""Final answers: how they are read, which are equivalent, and which are right, in processes that can be killed."""
