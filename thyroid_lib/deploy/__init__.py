"""The selected model in use: export to ONNX, predictor, web page, DICOM node.

Only the export needs torch; the study imports nothing from here.
"""

NOTICE = "Research use, not for diagnosis"
