"""Bundles: folders for the programs of others, each made from a run's exports. A new one is a module with a `Bundle`,
listed here."""

from tunewright.export.bundles.mlx import MLX
from tunewright.export.bundles.ollama import OLLAMA
from tunewright.export.bundles.onnx import ONNX
from tunewright.export.bundles.serve import SERVE

BUNDLES = {bundle.kind: bundle for bundle in (OLLAMA, SERVE, MLX, ONNX)}
