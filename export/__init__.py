"""Export of a checkpoint to a model repository that Triton serves as it is."""
