"""Heads: where they read, and whether what they learned is what is loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from build import CHATML, LORA, adapter_note, byte_tokenizer, exact_norms, plan_of, tiny_lm, training_of
from torch import Tensor

from faults import Fault, Patch
from tunewright.core.run_folder import Run
from tunewright.data.messages import Chat, Message, question
from tunewright.export import classifier
from tunewright.methods import METHODS, classify
from tunewright.methods.pairs import reward_model
from tunewright.model import adapters, forward, peft_format
from tunewright.model.heads.linear import head_of
from tunewright.tokens.packing import to_microbatch
from tunewright.tokens.rendering import for_generation, for_training
from tunewright.tokens.sequences import TrainRow, head_sequence
from tunewright.tokens.template import Template
from tunewright.train import loop

TEMPLATE = Template(byte_tokenizer())
LABELS = ("a", "b")
END = TEMPLATE.eos
# With the end token inside, as a conversation of several turns has it, and of other lengths.
PROMPTS = [[5, 6, END, 7, 8, 9], [5, 6, END, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]


def headed(zero: bool = False) -> Any:
    model = tiny_lm(dtype=torch.float64, vocabulary=300)
    exact_norms(model.module)
    adapters.attach(model.module, LORA, 1, len(LABELS))
    for p in adapters.trainable(model.module).values():
        if not zero:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    return model


def reads_the_last_token() -> None:
    model = headed()
    with torch.no_grad():
        alone = [model.decoder(torch.tensor([p])).last_hidden_state[0, -1] for p in PROMPTS]
        expected = head_of(model.module)(torch.stack(alone))  # type: ignore[misc]
        for layout in ("padded", "packed", "shared"):
            sequences = [head_sequence(p, END, i) for i, p in enumerate(PROMPTS)]
            microbatch = to_microbatch(sequences, layout, pad=END)  # type: ignore[arg-type]
            actual = forward.head_logits(model, microbatch)[microbatch.prediction_M]
            assert torch.allclose(actual, expected, rtol=0, atol=1e-10), layout


def read_before_the_first_end(patch: Patch) -> None:
    """As transformers did: the place is searched, and where the token is missing, argmax - 1 is the last one."""

    def head_logits(model: Any, microbatch: Any, recompute: str = "none") -> Tensor:
        ids_BT = torch.from_numpy(microbatch.ids_BT)
        last_B = (ids_BT == END).int().argmax(-1) - 1
        hidden_BTD = model.decoder(ids_BT).last_hidden_state
        logits: Tensor = head_of(model.module)(hidden_BTD[range(len(ids_BT)), last_B])  # type: ignore[misc]
        return logits

    patch.setattr(forward, "head_logits", head_logits)


def the_prompt_has_no_label() -> None:
    chat = Chat((Message("user", "warm or cold?"), Message("assistant", "warm")), "x:1")
    ((row,),) = [r.sequences for r in METHODS["classify"].prepare(TEMPLATE, chat, 0, None)]
    assert list(row.ids[:-1]) == for_generation(TEMPLATE, chat.prompt)


def the_label_is_read(patch: Patch) -> None:
    def prepare(template: Template, example: Any, row: int, max_length: int | None) -> list[TrainRow]:
        (answered,) = for_training(template, example, row, max_length)
        return [TrainRow((head_sequence(answered.ids, template.eos, row),), row)]

    patch.setattr(classify, "prepare", prepare)


def the_head_is_loaded() -> None:
    """What a few steps have taught it is in the adapter's files, and answers after they are loaded."""
    model, texts = headed(zero=True), ["x", "yes", "no more", "zzz"]
    rows = [
        row
        for i, text in enumerate(texts)
        for row in METHODS["classify"].prepare(
            TEMPLATE, Chat((Message("user", text), Message("assistant", LABELS[i % 2])), "x:1"), i, None
        )
    ]
    prompt = to_microbatch([head_sequence(for_generation(TEMPLATE, question("x")), END, 0)], "padded")
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(method="classify", labels=LABELS, steps=3)
        loop.train(training_of(model.module, plan, rows, [], Run(Path(folder))))
        peft_format.save(model.module, LORA, Path(folder) / "adapter", "base", adapter_note("base"))
        again = tiny_lm(dtype=torch.float64, vocabulary=300)
        exact_norms(again.module)
        peft_format.load(again.module, Path(folder) / "adapter")
    with torch.no_grad():
        logits = forward.head_logits(model, prompt)
        assert logits.any()
        assert torch.allclose(forward.head_logits(again, prompt), logits, rtol=0, atol=1e-5)


def the_head_is_not_saved(patch: Patch) -> None:
    plain = peft_format.state
    patch.setattr(
        peft_format, "state", lambda model: {k: v for k, v in plain(model).items() if not k.endswith("score.weight")}
    )


def padding_ends_no_prompt() -> None:
    """In a template whose prompts end with the token that the tokenizer pads with."""
    template = Template(byte_tokenizer(CHATML.split("{% if add")[0].replace("<|im_end|>\n", "<|im_end|>")))
    model = headed()
    adapters.merge(model.module)
    exact_norms(model.module)
    made: Any = classifier.classifier(model.module, plan_of(method="classify", labels=LABELS), template)
    prompts = [for_generation(template, question(text)) for text in ("x", "and what of it?")]
    assert {p[-1] for p in prompts} == {END}
    with torch.no_grad():
        together = classifier.batch_logits(made, prompts)
        hidden = [made.model(torch.tensor([p])).last_hidden_state[0, -1] for p in prompts]
        assert torch.allclose(together, made.score(torch.stack(hidden)), rtol=0, atol=1e-10)


def padded_with_the_end(patch: Patch) -> None:
    patch.setattr(classifier, "_padding", lambda template: template.tokenizer.pad_token_id)


def the_answer_is_scored() -> None:
    asking, good, bad = Message("user", "why"), Message("assistant", "because"), Message("assistant", "b")
    (row,) = METHODS["reward_model"].prepare(TEMPLATE, Chat((asking, good), "x:1", rejected=bad), 0, None)
    model, plan = headed(), plan_of(method="reward_model", labels=("reward",), layout="shared")
    (part,) = METHODS["reward_model"].microbatches(model, [row], [0], plan, 0)
    with torch.no_grad():
        actual = reward_model.scores(model, part)
        whole = [for_training(TEMPLATE, Chat((asking, answer), "x:1"))[-1].ids for answer in (good, bad)]
        last = [model.decoder(torch.tensor([ids])).last_hidden_state[0, -1] for ids in whole]
        expected = head_of(model.module)(torch.stack(last))[:, 0]  # type: ignore[misc]
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)
    assert actual[0] != actual[1]


def scored_before_the_answer(patch: Patch) -> None:
    patch.setattr(reward_model, "head_sequence", lambda ids, end, row: head_sequence(ids[:20], end, row))


FAULTS = [
    Fault(46, "a head reads a token for padding, or the first end token of a prompt", "transformers 35352, 46782; gpt-neox 1285; TRL 6952", "a head reads the last token of the prompt by its length, whatever the prompt contains and whatever is beside it",
          reads_the_last_token, read_before_the_first_end),
    Fault(47, "a trained head is not saved, or drawn at random when it is loaded", "PEFT 310, 577, 876; transformers 26160", "a head and its adapter have the same logits after they are loaded",
          the_head_is_loaded, the_head_is_not_saved),
    Fault(48, "a head reads the label", "", "the head reads the prompt as it is served; SELFTEST_PROMPT",
          the_prompt_has_no_label, the_label_is_read),
    Fault(49, "an exported head reads before the end of a prompt, because this ends with the token for padding", "transformers (GenericForSequenceClassification)", "the token for padding of an export ends no prompt; EXPORT_MISMATCH",
          padding_ends_no_prompt, padded_with_the_end),
    Fault(80, "a reward model reads its score before the answer", "", "a score is read at the last token of the conversation, whatever the layout",
          the_answer_is_scored, scored_before_the_answer),
]  # fmt: skip
