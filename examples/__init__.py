"""Example programs that use the packages from outside, as a reader's own programs would."""
