"""The OpenAI-compatible endpoint in front of Triton: `refrag openai`, and a page to try it on."""
