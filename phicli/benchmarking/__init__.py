"""Measuring how fast models run, side by side, each in a process of its own."""
