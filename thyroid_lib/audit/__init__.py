"""Near-copies among frames, leakage of a split, defects of masks."""
