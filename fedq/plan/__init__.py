"""A Python function becomes a checked, replayable Graph."""
