"""Measuring how well each stage does on held-out rows."""

from phicli.evaluation.measure import evaluate

__all__ = ["evaluate"]
