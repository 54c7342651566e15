"""Adapters (LoRA and its kin) trained on a quantized or plain base.

rows (where they come from, what is held out) -> batches, with fitting -> loss -> training (the loop), with recipe,
state, checkpoint and reporting, recompute where memory is short; together and ranks: processes that share a step;
passes are their Olive form, loftq and continuing two ways to begin.
"""
