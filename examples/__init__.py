"""Programs that use the packages from outside, as a reader's own would."""
