"""Our two attentions behind transformers' AttentionInterface, for models whose own modules compute.

The layout comes as keyword arguments of the forward call, so there is no global state; transformers makes no mask for
an attention that it has no mask function for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tunewright.model.attention.prefixed import prefixed_attention
from tunewright.model.attention.tree import tree_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TREE, PREFIXED = "tunewright_tree", "tunewright_prefixed"


def register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(TREE, tree_attention)
    AttentionInterface.register(PREFIXED, prefixed_attention)


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within, the model attends as ``TREE`` or ``PREFIXED``; outside, as it was loaded."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
