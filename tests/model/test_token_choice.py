"""How tokens are chosen: as transformers does it, the same in any batch, and drawn from the right distribution."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from build import tiny_lm

from tunewright.core.sampling import DECODINGS, GREEDY, Sampling
from tunewright.model.decoding.choice import TokenChoice
from tunewright.model.decoding.generate import Decoding, complete

DECODING = Decoding(40, (3,))


def prompts(count: int) -> list[list[int]]:
    draw = np.random.default_rng(count)
    return [[7] * 10 + draw.integers(4, 256, int(draw.integers(1, 12))).tolist() for _ in range(count)]


@pytest.mark.parametrize("penalty", [1.1, 1.5])
def test_a_penalty_is_that_of_transformers(penalty: float) -> None:
    model, asked = tiny_lm("llama"), prompts(4)
    ours = complete(model, asked, replace(DECODING, sampling=Sampling(repetition_penalty=penalty)))
    for prompt, answer in zip(asked, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=3,
            pad_token_id=0,
        )
        assert theirs[0, len(prompt) :].tolist()[: len(answer)] == answer
    assert ours != complete(model, asked, DECODING), "it changes something"


@pytest.mark.parametrize("name", DECODINGS)
def test_an_answer_depends_on_its_own_prompt_alone(name: str) -> None:
    model, asked = tiny_lm("llama"), prompts(5)
    how = replace(DECODING, sampling=DECODINGS[name])
    together = complete(model, asked, how)
    assert [complete(model, [prompt], how)[0] for prompt in asked] == together
    assert complete(model, asked[::-1], replace(how, batch_size=2))[::-1] == together


def test_another_seed_draws_another_answer() -> None:
    model, asked = tiny_lm("llama"), prompts(3)
    first, second = (
        complete(model, asked, replace(DECODING, sampling=Sampling(temperature=1.0, seed=seed))) for seed in (0, 1)
    )
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_draws_have_the_distribution_of_the_softmax(temperature: float) -> None:
    logits_BV = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]]).expand(4000, -1)
    choice = TokenChoice.of(Sampling(temperature=temperature), [[i] for i in range(4000)], logits_BV)
    counts = Counter(choice.next(logits_BV).tolist())
    expected = (logits_BV[0] / temperature).softmax(-1)
    for token in range(5):
        p = float(expected[token])
        assert abs(counts[token] / 4000 - p) < 4 * (p * (1 - p) / 4000) ** 0.5 + 1e-3


def test_greedy_is_the_most_probable_token_bit_for_bit() -> None:
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    choice = TokenChoice.of(GREEDY, [[1]] * 6, logits_BV)
    assert torch.equal(choice.next(logits_BV), logits_BV.argmax(-1))
    assert (choice.seen_BV, choice.noise) == (None, None)


def test_what_other_programs_read() -> None:
    assert GREEDY.generation_config == {"do_sample": False}
    assert GREEDY.gguf == {"temp": 0.0}
    assert DECODINGS["penalty"].gguf == {"temp": 0.0, "penalty_repeat": 1.1, "penalty_last_n": -1}
    assert DECODINGS["sampled"].gguf == {"temp": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert DECODINGS["penalty"].generation_config == {"do_sample": False, "repetition_penalty": 1.1}
    assert DECODINGS["sampled"].generation_config == {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
