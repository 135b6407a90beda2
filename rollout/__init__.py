"""Where groups come from: tasks, engines, the fleet of rollout workers, the collector. Imports `verifiers` and `sandbox`.

Learning from groups is not here; that is `grpo`. Importing this package loads none of torch, vllm, transformers or ray.
"""
