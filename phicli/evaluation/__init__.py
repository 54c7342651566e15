"""Measuring how well each stage does on held-out rows."""

from phicli.steps.evaluate import evaluate

__all__ = ["evaluate"]
