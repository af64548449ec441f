"""Semi-supervised segmentation: few masks, many images, and a monitor that names a collapse early."""

__version__ = "0.1.0"
