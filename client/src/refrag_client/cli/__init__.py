"""The command `refrag`: its entry point, what it finds its commands by, and the three that the client brings."""
