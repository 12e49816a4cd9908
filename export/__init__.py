"""Checkpoint → a model repository that Triton serves as it stands."""
