"""Thin library under the notebooks of the thyroid ultrasound segmentation study.

Its folders, from the ground up: files, data, models, evaluate, audit, train, compare, plots, study,
deploy; docs/map.md has a line for each file. Importing it loads nothing else.
"""

__version__ = "0.1.0"
