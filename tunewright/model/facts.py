"""Facts of a model: what is known without loading its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import ConfigError, ModelError
from tunewright.model import arch_probe, loading, model_files
from tunewright.model.encoders.folder import own_pooling, positions
from tunewright.model.frozen import nf4, stored
from tunewright.tokens.encoder_text import is_encoder


@dataclass(frozen=True)
class Facts:
    """What a model is, read from its folder and from a probe: a small random model of the same architecture.

    ``packable``, ``shareable``: a row alone and the same row in one pass with others, or with its beginning shared,
    give equal logits on this machine (else ``leak`` says why not). ``draws``: it has dropout of its own in training.
    ``cached``: numbers that a cache keeps for each token and layer, keys and values; ``head_width``: numbers of a head.
    ``fused``: its layers can be run by `fused_llama`. ``sha256``: over config and weight files, and how weights are
    rounded. ``packed``: how its linear layers are held, as in `packing.pack`; "" for dense; ``packed_bytes``: about the
    memory that these take. ``encoder``: its tokens see both sides, so it can be trained with a head, and cannot write;
    ``pooling``: how its folder says that its hidden states are pooled; "" if it does not.
    """

    name: str
    path: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    cached: int
    head_width: int
    vocabulary: int
    context: int
    parameters: int
    dtype: str
    window: int | None
    shareable: bool
    packable: bool
    leak: str
    draws: bool
    fused: bool
    sha256: str
    packed: str = ""
    packed_bytes: int = 0
    encoder: bool = False
    pooling: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_facts(name: str, quantise: str = "none", adapter: AdapterConfig | None = None) -> Facts:
    """Facts of a model by name. ``quantise``, ``adapter``: as in the config. No weights are loaded; a small random
    model of its architecture is probed for leaks between the rows of one pass. Raises MODEL_NOT_FOUND,
    MODEL_UNSUPPORTED, CONFIG_CONFLICT, MISSING_PACKAGE and what `model_files.check` raises."""
    folder = loading.resolve(name)
    model_files.check(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            "MODEL_UNSUPPORTED",
            f"transformers does not know this model: {str(error).splitlines()[0].split('. ')[0][:200]}",
            where=str(folder),
            fix="update transformers.",
        ) from None
    text, encoder = config.get_text_config(), is_encoder(config)
    if encoder and quantise != "none":
        message = f"quantise={quantise} packs the layers of decoders, and {name} is an encoder."
        raise ConfigError("CONFIG_CONFLICT", message, where="quantise", fix="leave quantise at none.")
    parameters, dtypes = model_files.sizes(folder)
    digest, packed = model_files.digest(folder), _packed(name, quantise)
    probed = arch_probe.probe(config, adapter if adapter is not None and adapter.of_peft else None)
    heads = int(getattr(text, "num_attention_heads", 0) or 1)
    cached_heads = int(getattr(text, "num_key_value_heads", 0) or heads)
    head_width = int(getattr(text, "head_dim", 0) or text.hidden_size // heads)
    return Facts(
        name=name,
        path=str(folder),
        model_type=config.model_type,
        hidden=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        heads=heads,
        cached=2 * cached_heads * head_width,
        head_width=head_width,
        vocabulary=int(text.vocab_size),
        context=positions(config) if encoder else int(getattr(text, "max_position_embeddings", 0) or 1_000_000),
        parameters=parameters,
        dtype="/".join(sorted(dtypes)),
        window=None if encoder else window_of(text),
        shareable=not probed.leak["shared"],
        packable=not probed.leak["packed"],
        leak=probed.leak["packed"] or probed.leak["shared"],
        draws=probed.draws,
        fused=probed.fused,
        sha256=nf4.digest(digest) if packed == "nf4" else digest,
        packed=packed,
        packed_bytes=_packed_bytes(packed, parameters),
        encoder=encoder,
        pooling=(own_pooling(folder) if encoder else None) or "",
    )


def _packed(name: str, quantise: str) -> str:
    if quantise == "nf4":
        nf4.bitsandbytes()
        return "nf4"
    if quantise in ("none", stored.NAME):
        return "" if quantise == "none" else stored.NAME
    file = loading.gguf_file(name)
    if file is None:
        raise ConfigError(
            "CONFIG_CONFLICT",
            f"quantise=gguf keeps the blocks of a GGUF file, and {name} is none.",
            where="quantise",
            fix="give the model as FILE.gguf, or choose nf4.",
        )
    return str(file)


def _packed_bytes(packed: str, parameters: int) -> int:
    if packed in ("", stored.NAME):  # pages of files are dropped where memory is needed
        return 0
    return nf4.BYTES * parameters // nf4.BLOCK if packed == "nf4" else Path(packed).stat().st_size


def window_of(config: Any) -> int | None:
    """The sliding window of the layers that have one, in tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return int(window) if window else None
