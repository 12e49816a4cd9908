"""The networks of a checkpoint, and the checkpoint on disk."""
