"""The selected model at work: one predictor, its export, a page, and a node beside a PACS.

Stands on top of the library; nothing of the study imports it. What runs here after the export needs
no torch.
"""
