"""Weights on disk and in torch: AWQ, PEFT adapters, int4 linears."""
