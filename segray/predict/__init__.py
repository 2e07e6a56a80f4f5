"""A saved model and images -> masks, overlays and an ONNX file of the model."""

from segray.predict.export import Exported, export_onnx
from segray.predict.files import Written, first_image, plain_progress, predict_files
from segray.predict.images import BadImage, read_image
from segray.predict.predictor import Predictor, load

__all__ = [
    "BadImage",
    "Exported",
    "Predictor",
    "Written",
    "export_onnx",
    "first_image",
    "load",
    "plain_progress",
    "predict_files",
    "read_image",
]
