"""What `grpo doctor` looks at."""
