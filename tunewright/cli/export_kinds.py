"""`--to` of `tunewright export`: names of exports and bundles as settings."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import get_args

from tunewright.core.config.schema import GgufType
from tunewright.core.errors import ConfigError
from tunewright.export import EXPORTS, KINDS
from tunewright.export.bundles import BUNDLES

OTHER_NAMES = {"vllm": ("serve",), "sglang": ("serve",), "llama-server": ("serve", "gguf")}
PUSHED = "hub"


def settings(to: str, before: Sequence[str], written: Sequence[str] = ()) -> list[str]:
    """The settings for ``to``, such as ``gguf:f16,q8_0,ollama``: its exports and bundles, what these are made from, and
    ``before``, with the types of GGUF files that were ``written``. Raises CONFIG_RANGE."""
    kinds, types = list(before), list[str]()
    for word in map(str.strip, to.split(",")):
        name, _, type_ = word.partition(":")
        if types and word in get_args(GgufType):  # the list continues
            types.append(word)
        elif name == "gguf" and type_ in get_args(GgufType):
            types.append(type_)
            kinds.append(name)
        elif word in KINDS or word in OTHER_NAMES:
            kinds += OTHER_NAMES.get(word, (word,))
        elif name.lower() == "gguf" and type_:
            message = f"{type_!r} is not a type of GGUF that can be written."
            raise ConfigError(
                "CONFIG_RANGE", message, where="--to", fix=f"choose from {', '.join(get_args(GgufType))}."
            )
        else:
            close = difflib.get_close_matches(word.lower(), (*KINDS, *OTHER_NAMES), n=1, cutoff=0.6)
            guess = f"did you mean {close[0]}? Otherwise " if close else ""
            fix = f"{guess}choose from {', '.join((*KINDS, *OTHER_NAMES))}; types of GGUF follow it: gguf:f16,q8_0."
            if word == PUSHED:
                fix = "push a finished run: `tunewright push RUN OWNER/NAME`."
            raise ConfigError("CONFIG_RANGE", f"there is no export {word!r}.", where="--to", fix=fix)
    kinds += [needed for kind in kinds if kind in BUNDLES for needed in BUNDLES[kind].needs]
    chosen = [kind for kind in (*EXPORTS, *BUNDLES) if kind in kinds]
    types = [type_ for type_ in get_args(GgufType) if types and type_ in (*types, *written)]
    return [f"export.to=[{', '.join(chosen)}]", *([f"export.gguf=[{', '.join(types)}]"] if types else [])]
