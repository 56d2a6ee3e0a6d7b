"""Notebooks executed with checked parameters, the report, verification, platforms."""
