"""Mixed prompts whose answers are known, in batches, and what the decoder makes of them."""
