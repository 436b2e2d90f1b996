"""What a strategy uses to solve one problem: generation, cutting into steps, token budgets, usage and timing."""
