"""The networks under comparison, each as its paper draws it, in a file of its own.

Shapes are written for the papers' width w = 64, images (N, 1, H, W). Every network takes
(in_channels, out_channels, width) and returns logits (N, out_channels, H, W). torch is imported
with the first of these names: the workflow reads the names of user networks at every start.
"""

from importlib import import_module

_NAMES = {
    "blocks": "PAPER_WIDTH Network at_least_one conv_bn_relu up_conv",
    "unet": "UNet",
    "segnet": "SegNet",
    "resunet": "ResUNet ResidualUnit",
    "reported": "ReportedResidualUnit ResUNetReported SegNetReported SegNetReportedNoReLU",
    "registry": "MODELS PRECISIONS arithmetic build_model count_parameters initialise "
    "multiply_adds to_input",
}


def __getattr__(name: str):
    """Import a name from the file that defines it (PEP 562)."""
    for file, names in _NAMES.items():
        if name in names.split():
            return getattr(import_module(f"thyroid_lib.models.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
