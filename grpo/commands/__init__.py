"""The commands of `grpo` that are more than a line: their words, their help, what they print."""
