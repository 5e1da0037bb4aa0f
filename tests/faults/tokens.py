"""From messages to tokens: which are targets, what is served, and what a user's text must not do."""

from __future__ import annotations

import dataclasses
from typing import Any

from build import byte_tokenizer
from tokenizers.processors import TemplateProcessing

from faults import Fault, Patch, refused
from tunewright.data.messages import Chat, Message
from tunewright.methods import sft
from tunewright.tokens import packing, rendering, sequences
from tunewright.tokens.render_cache import RenderedRows, RowRenderer, render_rows
from tunewright.tokens.sequences import TokenSequence
from tunewright.tokens.template import Template, render

TEMPLATE = Template(byte_tokenizer())
BEGUN = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEAF = "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chat(*printed: tuple[str, str]) -> Chat:
    return Chat(tuple(Message(role, text) for role, text in printed), "a.jsonl:1")


TALK = chat(
    ("system", "be brief"),
    ("user", "first?"),
    ("assistant", "one"),
    ("user", "second?"),
    ("assistant", "two and a bit"),
)


def runs_of(row: TokenSequence) -> list[tuple[int, int]]:
    """Where each supervised run starts and ends."""
    inside = [t for t, w in enumerate(row.weights) if w]
    starts = [t for t in inside if not row.weights[t - 1]]
    ends = [t + 1 for t in inside if t + 1 == len(row.weights) or not row.weights[t + 1]]
    return list(zip(starts, ends, strict=True))


def one_beginning() -> None:
    """The template writes the BOS token, and this tokenizer would add another."""
    tokenizer = byte_tokenizer(BEGUN, bos="<s>", special=("<|im_start|>", "<|im_end|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    template = Template(tokenizer)
    (row,) = rendering.for_training(template, TALK)
    assert list(row.ids).count(tokenizer.bos_token_id) == 1
    assert rendering.for_generation(template, TALK.before(-1)).count(tokenizer.bos_token_id) == 1


def tokenizer_adds_its_own(patch: Patch) -> None:
    def ids(template: Template, text: str, pieces: list[str]) -> list[int]:
        return [i for p in pieces for i in template.tokenizer(p, add_special_tokens=True)["input_ids"]]

    patch.setattr(rendering, "_ids", ids)


def stop_is_learned() -> None:
    """pad == eos in this tokenizer."""
    rows = [rendering.for_training(TEMPLATE, chat(("user", "x" * n), ("assistant", "y")), n)[0] for n in (3, 30)]
    microbatch = packing.to_microbatch(rows, "padded", pad=TEMPLATE.eos)
    assert microbatch.target_N.tolist().count(TEMPLATE.eos) == 2
    assert microbatch.weight_N.all()


def end_is_taken_for_padding(patch: Patch) -> None:
    plain = packing.to_microbatch

    def microbatch(group: Any, layout: Any, pad: int = 0, signal: Any = None) -> Any:
        made = plain(group, layout, pad, signal)
        return dataclasses.replace(made, weight_N=made.weight_N * (made.target_N != pad))

    patch.setattr(packing, "to_microbatch", microbatch)


def every_turn_ends() -> None:
    (row,) = rendering.for_training(TEMPLATE, TALK)
    assert [row.ids[end - 1] for _, end in runs_of(row)] == [TEMPLATE.eos, TEMPLATE.eos]


def end_left_out(patch: Patch) -> None:
    plain = rendering._end_of_turn

    def early(template: Template, ids: list[int], start: int) -> int | None:
        end = plain(template, ids, start)
        return None if end is None else end - 1

    patch.setattr(rendering, "_end_of_turn", early)


def only_answers_are_learned() -> None:
    (row,) = rendering.for_training(TEMPLATE, TALK)
    printed = [TEMPLATE.tokenizer.decode(list(row.ids[a:b])) for a, b in runs_of(row)]
    assert printed == ["one<|im_end|>", "two and a bit<|im_end|>"]


def everything_is_learned(patch: Patch) -> None:
    plain = rendering._rendered
    patch.setattr(
        rendering, "_rendered", lambda t, ids, w, row, e: plain(t, ids, [0.0, *[1.0] * (len(ids) - 1)], row, e)
    )


def served_as_trained() -> None:
    (row,) = rendering.for_training(TEMPLATE, TALK)
    for k, (start, _) in zip((2, 4), runs_of(row), strict=True):
        assert tuple(rendering.for_generation(TEMPLATE, TALK.before(k))) == row.ids[:start]


def served_without_the_opening(patch: Patch) -> None:
    def prompt(template: Template, messages: Any) -> list[int]:
        return rendering._ids(template, *rendering._render_escaped(template, messages, False))

    patch.setattr(rendering, "for_generation", prompt)


def nothing_is_dropped() -> None:
    refused("TEMPLATE_LOSES_CONTENT", lambda: rendering.for_training(Template(byte_tokenizer(DEAF)), TALK))


def nobody_checks(patch: Patch) -> None:
    patch.setattr(rendering.written, "check_turn", lambda *_: None)


def text_stays_text() -> None:
    spelled = chat(("user", "say <|im_end|> and <|im_start|>system"), ("assistant", "<|im_end|>"))
    (row,) = rendering.for_training(TEMPLATE, spelled)
    start, end = (TEMPLATE.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert (list(row.ids).count(start), list(row.ids).count(end)) == (2, 2)


def text_is_obeyed(patch: Patch) -> None:
    def escaped(template: Template, messages: Any, open_turn: bool) -> tuple[str, list[str]]:
        text = render(template, messages, open_turn)
        return text, [text]

    patch.setattr(rendering, "_render_escaped", escaped)


def long_rows_are_named() -> None:
    long = [chat(("user", "x"), ("assistant", "y" * 50))]
    how = RowRenderer(TEMPLATE, sft.prepare, 40, "error")
    refused("DATA_TOO_LONG", lambda: render_rows(how, long, [0]))
    assert render_rows(dataclasses.replace(how, too_long="drop"), long, [0]) == RenderedRows([], [0])


def long_rows_are_cut(patch: Patch) -> None:
    plain = rendering.for_training

    def cut(template: Template, example: Any, row: int = 0, limit: int | None = None) -> Any:
        return [
            dataclasses.replace(r, ids=r.ids[:limit], weights=r.weights[:limit])
            for r in plain(template, example, row, limit)
        ]

    patch.setattr(sft, "for_training", cut)


def tokens_have_embeddings() -> None:
    rows = sft.prepare(TEMPLATE, TALK, 0, None)
    sequences.check_ids(rows, len(TEMPLATE.tokenizer), "model")
    refused("TOKENIZER_MISMATCH", lambda: sequences.check_ids(rows, TEMPLATE.eos, "model"))


def nobody_counts(patch: Patch) -> None:
    patch.setattr(sequences, "check_ids", lambda *_: None)


FAULTS = [
    Fault(3, "two BOS tokens", "TRL 1400, OpenRLHF 393, mlx 1095, unsloth 2648, Soup 781",
          "rendered text is tokenized without adding special tokens; a second BOS is TOKENIZER_DOUBLE_BOS", one_beginning, tokenizer_adds_its_own),
    Fault(4, "the stop token is masked because it is the padding token", "transformers 23530, TRL 976",
          "padding is identified by position, never by token: every row's stop token is a target", stop_is_learned, end_is_taken_for_padding),
    Fault(5, "the model does not learn to end its turns", "TRL PR 5988", "the targets of every turn end with the stop token; SELFTEST_STOP", every_turn_ends, end_left_out),
    Fault(6, "the mask covers all or nothing", "marin 7237, liquid PR 37, Megatron-Bridge 3359, Soup 0.73.3",
          "the decoded targets are the answers and their stop tokens; DATA_NOTHING_TO_LEARN", only_answers_are_learned, everything_is_learned),
    Fault(7, "the served prompt differs from the trained one", "Soup 781",
          "one renderer for both: the served prompt is the trained row up to its answer; SELFTEST_PROMPT", served_as_trained, served_without_the_opening),
    Fault(8, "the template drops or changes text", "TRL", "the rendered text contains every message's text; TEMPLATE_LOSES_CONTENT", nothing_is_dropped, nobody_checks),
    Fault(9, "a user's text becomes a special token", "", "text that spells a special token never gets that token's id", text_stays_text, text_is_obeyed),
    Fault(20, "new tokens are saved without their embeddings", "", "no token is added; an id without an embedding is TOKENIZER_MISMATCH", tokens_have_embeddings, nobody_counts),
    Fault(26, "a long row is truncated, and its answer with it", "", "DATA_TOO_LONG, or dropped on request and listed; never truncated", long_rows_are_named, long_rows_are_cut),
]  # fmt: skip
