"""A model that gives vectors of texts, as a folder that sentence-transformers loads: the merged model without its
output head, how it is pooled, that vectors have length 1, and the texts before queries and documents."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.errors import MissingExtra
from tunewright.core.run_folder import read_json, write_json
from tunewright.export import portable
from tunewright.export.encoder_folder import write_modules
from tunewright.export.kind import Place, Reloaded, TrainedRun
from tunewright.tokens.template import Template
from tunewright.tokens.texts import Kind, appended_end

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunewright.model.language_model import LanguageModel

    Embed = Callable[[Sequence[str], Kind], Tensor]

LOADED_WITH = "sentence-transformers"
# Largest allowed difference of a component of a vector of length 1, by stored dtype.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02, "float16": 0.005}
SETTINGS = "config_sentence_transformers.json"


def require_package() -> None:
    """Raises MISSING_PACKAGE: an export is accepted once that library has loaded it."""
    if importlib.util.find_spec("sentence_transformers") is None:
        why, command = "the export of train.method=embed", "pip install 'tunewright[embed]'"
        raise MissingExtra("sentence-transformers", why, command, where="export.to")


def write(source: TrainedRun, module: PreTrainedModel, folder: Path, dtype: str) -> Path:
    """``module``: merged, with its output head or without."""
    from tunewright.model import arch_probe, loading
    from tunewright.model.heads import vectors

    inner, plan = module.base_model, source.plan
    stored = inner if dtype == "float32" else copy.deepcopy(inner).to(loading.torch_dtype(dtype))
    before = inner.config.architectures
    with arch_probe.quiet():
        stored.save_pretrained(folder)
        tokenizer(source.template, plan.max_length).save_pretrained(folder)
    inner.config.architectures = before  # that of a decoder with its head is another
    portable.make_portable(folder)
    width = int(inner.config.get_text_config().hidden_size)
    write_modules(folder, vectors.pooling(plan), plan.max_length, width, [("2_Normalize", "Normalize")])
    query, document = source.template.prefixes
    prompts = {"prompts": {"query": query, "document": document}, "default_prompt_name": None}
    write_json(folder / SETTINGS, {**prompts, "similarity_fn_name": "cosine"})
    return folder


def tokenizer(template: Template, most: int) -> PreTrainedTokenizerBase:
    """The run's tokenizer, which ends every text as in training, and pads on the right."""
    from tokenizers import processors

    made: PreTrainedTokenizerBase = copy.deepcopy(template.tokenizer)
    made.chat_template, made.padding_side, made.model_max_length = None, "right", most
    if made.pad_token is None:
        made.pad_token = made.eos_token
    if (end := appended_end(template)) is not None:
        token, core = made.convert_ids_to_tokens(end), made.backend_tokenizer
        adds = processors.TemplateProcessing(single=f"$A {token}", pair=f"$A $B {token}", special_tokens=[(token, end)])
        own = core.post_processor
        core.post_processor = adds if own is None else processors.Sequence([own, adds])
    return made


def is_embedder(folder: Path) -> bool:
    """Whether a folder was written by `write`."""
    return (folder / SETTINGS).is_file() and "similarity_fn_name" in read_json(folder / SETTINGS)


def reload(folder: Path) -> Reloaded:
    """As its users load it."""
    import torch
    from sentence_transformers import SentenceTransformer

    from tunewright.model import arch_probe
    from tunewright.model.language_model import LanguageModel

    with arch_probe.quiet():
        made = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )

    def embed(texts: Sequence[str], kind: Kind) -> Tensor:
        given = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": 8}
        vector_ND: Tensor = made.encode(list(texts), prompt_name=kind, **given)
        return vector_ND.float().cpu()

    module = made[0].auto_model.eval()
    return Reloaded(LanguageModel(module), made.tokenizer, None, LOADED_WITH, embed=embed, prefixes=made.prompts)


def without_head(model: LanguageModel) -> LanguageModel:
    """The model whose weights are exported."""
    from dataclasses import replace

    return replace(model, module=model.module.base_model)


def answers(embed: Embed, pairs: Sequence[Mapping[str, object]]) -> tuple[Tensor, list[list[int]]]:
    """(vector_ND of queries, then of their documents; the nearest of these documents for each query)."""
    import torch

    query_QD = embed([str(pair["query"]) for pair in pairs], "query")
    document_QD = embed([str(pair["document"]) for pair in pairs], "document")
    return torch.cat([query_QD, document_QD]), (query_QD @ document_QD.T).argmax(1, keepdim=True).tolist()


def encoded(reloaded: Reloaded, pairs: Sequence[Mapping[str, object]]) -> list[list[int]]:
    """Token ids of the queries, after their prefix, by the exported tokenizer."""
    assert reloaded.tokenizer is not None
    texts = [(reloaded.prefixes or {}).get("query", "") + str(pair["query"]) for pair in pairs]
    return [list(reloaded.tokenizer(text)["input_ids"]) for text in texts]


def snippet(place: Place) -> list[str]:
    return [
        "from sentence_transformers import SentenceTransformer",
        f'model = SentenceTransformer("{place.folder}")',
    ]
