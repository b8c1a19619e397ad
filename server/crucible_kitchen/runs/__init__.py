"""The life of runs: creating, queueing, executing, pausing, resuming."""
