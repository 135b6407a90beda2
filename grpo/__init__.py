"""Learn from groups, and run the whole: objectives, learner, loop, checkpoints, command line. Imports `rollout`, `verifiers`, `sandbox`."""
