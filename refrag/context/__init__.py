"""A request as tokens: passages cut into chunks, and the question."""
