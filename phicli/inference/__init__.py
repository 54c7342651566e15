"""Running an optimized model: sessions and conversations."""
