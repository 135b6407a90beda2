"""Learn from groups, and run the whole: objectives, learner, loop, checkpoints, command line. The topmost package."""
