"""Running an optimized model: sessions, conversations, and the chat at the terminal."""
