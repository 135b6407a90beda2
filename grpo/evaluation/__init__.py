"""What `grpo eval` does, from its plan to pass@k."""
