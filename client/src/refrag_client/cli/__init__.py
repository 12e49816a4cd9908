"""The command `refrag`: its entry point, the search for its commands, and the three that the client brings."""
