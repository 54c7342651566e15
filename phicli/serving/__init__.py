"""A model and its adapters over HTTP: OpenAI's and Anthropic's protocols on one engine, and a page to chat."""
