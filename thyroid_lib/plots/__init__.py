"""Figures: each function draws one and returns it."""
