"""What only llama.cpp can do, where the user has it: its converter knows more architectures, its library quantises to
fewer bits, and it can be asked how it splits a text."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core import programs
from tunewright.core.errors import MissingExtra, TrainError
from tunewright.export import merged
from tunewright.export.gguf.vocabulary import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.export.kind import TrainedRun

PACKAGE = "llama-cpp-python"
FILE_TYPES = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}  # llama_ftype in llama.h
_QUANTISE = """
import ctypes, sys, llama_cpp
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(options)))
"""


def installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def require(kind: str) -> None:
    """Raises MISSING_PACKAGE if weights of this type cannot be made."""
    if kind in FILE_TYPES and not installed():
        raise MissingExtra(PACKAGE, f"the type {kind}", f"pip install {PACKAGE}", where="export.gguf")


def converter(folder: str) -> Path:
    """The program in llama.cpp's source."""
    return Path(folder).expanduser() / "convert_hf_to_gguf.py"


def quantise(file: Path, to: Path, kind: str) -> None:
    """A float32 file, quantised."""
    _run([sys.executable, "-c", _QUANTISE, str(file), str(to), str(FILE_TYPES[kind])], f"llama.cpp cannot make {kind}")


def convert(source: TrainedRun, module: PreTrainedModel, to: Path, kind: str) -> None:
    """Have the user's llama.cpp convert the merged model."""
    assert source.config.export.llama_cpp is not None
    script = converter(source.config.export.llama_cpp)
    tokenizer = source.template.tokenizer
    template = tokenizer.chat_template
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        merged.save(module, source.template, Path(folder), "float32")
        tokenizer.chat_template = chat_template(source.template)
        try:
            tokenizer.save_pretrained(folder)
        finally:
            tokenizer.chat_template = template
        command = [sys.executable, str(script), folder, "--outfile", str(to), "--outtype", kind]
        _run([*command, "--model-name", to.stem], f"{script} failed")


def _run(command: Sequence[str], what: str) -> None:
    if (last := programs.failure(command)) is not None:
        fix = "update llama.cpp, or choose others in export.gguf or export.to."
        raise TrainError("EXPORT_FAILED", f"{what}: {last}", where="export.to", fix=fix)


def tokenizer(file: Path) -> Callable[[Sequence[str]], list[list[int]]] | None:
    """Texts -> token ids, by llama.cpp and the vocabulary of a GGUF file. None if llama.cpp is not installed."""
    if not installed():
        return None

    def encode(texts: Sequence[str]) -> list[list[int]]:
        from llama_cpp import Llama

        model = Llama(str(file), vocab_only=True, verbose=False)
        return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]

    return encode
