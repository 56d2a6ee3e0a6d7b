"""Predictions, metrics and scores per case; confidence and familiarity of frames."""
