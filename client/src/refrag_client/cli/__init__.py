"""The `refrag` command: one module per sub-command."""
