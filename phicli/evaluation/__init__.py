"""Measuring how well each stage does on held-out rows."""
