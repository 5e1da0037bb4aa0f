"""GGUF, the format of llama.cpp: the merged model, and the adapter alone."""

from tunewright.export.gguf.lora import LORA_GGUF
from tunewright.export.gguf.model import GGUF

__all__ = ["GGUF", "LORA_GGUF"]
