"""The training text of the built-in tiny model: hand-written patterns, expanded by a seeded grammar."""

from .builder import build_corpus, vocabulary_texts

__all__ = ["build_corpus", "vocabulary_texts"]
