"""Prompts as encoders read them: one text, or a pair of texts, between the special tokens of the encoder's own
tokenizer, such as [CLS] and [SEP].

An encoder has no chat template. Its text is the contents of all messages but the system message, joined by newlines; a
message that names two texts, as rows with two texts are read (`premise: ...`, `hypothesis: ...`), is a pair. The system
message is an instruction, which an encoder does not follow: it is left out, so it must be the same in all rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.core.errors import data_error
from tunewright.data.formats.labelled import PAIRS
from tunewright.data.messages import Chat, Example, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RULE = "encoder text 1"  # part of the template's hash: another rule gives other tokens
_PAIRED = re.compile("|".join(rf"{a}: (?P<a{n}>.*?)\n{b}: (?P<b{n}>.*)" for n, (a, b) in enumerate(PAIRS)), re.DOTALL)


def is_encoder(config: object) -> bool:
    """Whether a model of this transformers config reads both sides of a token: transformers has a class for it that
    fills in masked words, and it is neither set up as a decoder nor one half of a model of two."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    one_sided = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not one_sided


def is_encoder_folder(folder: Path) -> bool:
    """The same of a model folder; False if transformers cannot read its config."""
    from transformers import AutoConfig

    try:
        return is_encoder(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    except (OSError, ValueError, KeyError):
        return False


def texts(prompt: Prompt) -> tuple[str, ...]:
    """The text of a prompt, or its two texts. Raises DATA_FORM_UNSUPPORTED for a prompt with tools."""
    if prompt.tools:
        fix = "remove the tools from the rows, or choose a model that writes."
        raise data_error("DATA_FORM_UNSUPPORTED", "an encoder does not read the definitions of tools.", fix=fix)
    text = "\n".join(m.text for m in prompt.messages if m.role != "system")
    pair = _PAIRED.fullmatch(text)
    return (text,) if pair is None else tuple(part for part in pair.groups() if part is not None)


def ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of the prompt: what the tokenizer gives for its text or pair, but a special token that is spelled in a
    text stays plain text. Raises DATA_SPECIAL_TOKEN_TEXT where that is impossible."""
    given = texts(prompt)
    frame, out = _frame(tokenizer, len(given)), list[int]()
    for before, text in zip(frame, given, strict=False):
        out += [*before, *plain_ids(tokenizer, text)]
    return [*out, *frame[-1]]


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens before and behind it. Raises DATA_SPECIAL_TOKEN_TEXT."""
    pieces = _cuts(tokenizer).split(text)
    out = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    if len(pieces) > 1 and {*out} & ({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}):
        message = "a text spells a special token, and this tokenizer cannot read it as plain text."
        raise data_error("DATA_SPECIAL_TOKEN_TEXT", message, fix="remove it from the text.")
    return out


def with_words(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[list[int], list[int]]:
    """(token ids of a prompt's text, between special tokens; where the first token of each word is). Raises
    DATA_FORM_UNSUPPORTED for a word without a token of its own, and DATA_SPECIAL_TOKEN_TEXT."""
    text = " ".join(" ".join(texts(prompt)).split())
    if len(_cuts(tokenizer).split(text)) > 1:
        message = "a text spells a special token, and words are read from the text as it is."
        raise data_error("DATA_SPECIAL_TOKEN_TEXT", message, fix="remove it from the text.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    (before, behind), spans = _frame(tokenizer, 1), encoded["offset_mapping"]
    starts, at, place = list[int](), 0, 0
    for word in text.split():
        place = text.index(word, place)
        while at < len(spans) and spans[at][1] <= place:
            at += 1
        if at == len(spans) or spans[at][0] >= place + len(word) or at in starts[-1:]:
            message = f"the model's tokenizer gives the word {word!r} no token of its own."
            raise data_error("DATA_FORM_UNSUPPORTED", message, fix="remove the word, or choose another model.")
        starts.append(at)
        place += len(word)
    return [*before, *encoded["input_ids"], *behind], [len(before) + start for start in starts]


def spells_special(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> bool:
    """Whether a text of the prompt spells a special token, which a tokenizer alone reads as that token."""
    return any(len(_cuts(tokenizer).split(text)) > 1 for text in texts(prompt))


def framed(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> tuple[list[int], int]:
    """Token ids of one text, between special tokens, and how many of these are before it."""
    before, behind = _frame(tokenizer, 1)
    return [*before, *tokens, *behind], len(before)


def _frame(tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """The special tokens before, between and behind so many texts."""
    probe = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole, parts = list(tokenizer(*["a"] * count)["input_ids"]), list[list[int]]()
    for _ in range(count):
        at = next(i for i in range(len(whole)) if whole[i : i + len(probe)] == probe)
        parts.append(whole[:at])
        whole = whole[at + len(probe) :]
    return [*parts, whole]


def _cuts(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """The places after the first character of a special token: a text that is cut there spells none."""
    spelled = [t for t in tokenizer.all_special_tokens if len(t) > 1 and t != tokenizer.unk_token]
    return re.compile("|".join(f"(?<={re.escape(t[0])})(?={re.escape(t[1:])})" for t in spelled) or "(?!)")


def require_one_instruction(examples: Sequence[Example]) -> None:
    """Raises DATA_FORM_UNSUPPORTED for rows with different system messages, which an encoder would not read."""
    systems: dict[str, str] = {}
    for e in examples:
        if isinstance(e, Chat):
            systems.setdefault("\n".join(m.content for m in e.messages if m.role == "system"), e.where)
    if len(systems) > 1:
        message = "an encoder reads no system message, and this row's differs from that of others."
        fix = "move what differs into the text, or choose a model that writes."
        raise data_error("DATA_FORM_UNSUPPORTED", message, where=[*systems.values()][1], fix=fix)
