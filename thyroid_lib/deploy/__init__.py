"""The selected model in use: ONNX export, which alone needs torch, predictor, page, DICOM node."""

NOTICE = "Research use, not for diagnosis"
