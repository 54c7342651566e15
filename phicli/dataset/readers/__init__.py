"""Readers of what is no JSON Lines file: each gives its rows as lines of JSON."""
