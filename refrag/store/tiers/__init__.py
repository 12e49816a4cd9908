"""Where the store's values lie: memory, disk, Redis."""
