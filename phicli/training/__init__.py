"""Adapters (LoRA and its kin) trained on a quantized or plain base.

rows (tokens, batches) -> loss -> training (the loop) with checkpoint are the mathematics; loading and int4 bring a
quantized base into transformers; passes are their Olive form, loftq one way to begin; stage is the whole.
"""
