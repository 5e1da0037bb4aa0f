"""`--to` of `tunewright export`: names of exports and bundles as settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from tunewright.core.config.schema import GgufType
from tunewright.core.errors import ConfigError
from tunewright.export import EXPORTS, KINDS
from tunewright.export.bundles import BUNDLES

OTHER_NAMES = {"vllm": "serve", "sglang": "serve", "llama-server": "serve"}
PUSHED = "hub"


def settings(to: str, before: Sequence[str]) -> list[str]:
    """The settings for ``to``, such as ``gguf:f16,q8_0,ollama``: its exports and bundles, what these are made from, and
    those that the run has. Raises CONFIG_RANGE."""
    kinds, types = list(before), []
    for word in to.replace(":", ",").split(","):
        kind = OTHER_NAMES.get(word.strip(), word.strip())
        if kind in get_args(GgufType):
            types.append(kind)
        elif kind in KINDS:
            kinds += [*(BUNDLES[kind].needs if kind in BUNDLES else ()), kind]
        else:
            fix = f"choose from {', '.join((*KINDS, *OTHER_NAMES))}; types of GGUF follow it: gguf:f16,q8_0."
            if kind == PUSHED:
                fix = "push a finished run: `tunewright push RUN OWNER/NAME`."
            raise ConfigError("CONFIG_RANGE", f"there is no export {kind!r}.", where="--to", fix=fix)
    if types and "gguf" not in kinds:
        kinds.append("gguf")
    chosen = [kind for kind in (*EXPORTS, *BUNDLES) if kind in kinds]
    return [f"export.to=[{', '.join(chosen)}]", *([f"export.gguf=[{', '.join(types)}]"] if types else [])]
