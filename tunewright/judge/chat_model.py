"""A language model ready to answer, with its template, its decoding settings, and the plan that documents need.

Axes: R rows, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tunewright.core.config import Plan
from tunewright.data.messages import Chat, Example, Message, Prompt
from tunewright.data.scores import Answer, LabelProbs, Likelihood, Written
from tunewright.data.task.tags import words
from tunewright.judge.arms.arm import Progress, Writing, silent
from tunewright.methods import HEAD_ANSWERS, tag
from tunewright.methods.pairs import reward_model
from tunewright.model import forward, likelihood
from tunewright.model.decoding.generate import Decoding, Request, complete_all, label_logprobs
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import encoder_text, rendering
from tunewright.tokens.packing import singles, split_into_passes, to_microbatch
from tunewright.tokens.sequences import TokenSequence, head_sequence, prompt_then_answer
from tunewright.tokens.template import Template


@dataclass(frozen=True)
class ChatModel:
    """``plan``: for documents, which are split and packed as in training (max_length, tokens_per_pass, layout)."""

    model: LanguageModel
    template: Template
    decoding: Decoding
    plan: Plan

    def generate(self, writings: Sequence[Writing], progress: Progress = silent) -> list[list[Answer]]:
        """Written answers, all decoded together."""
        ids = [[rendering.for_generation(self.template, p) for p in writing.prompts] for writing in writings]
        requests = [Request(own, writing.sampling) for own, writing in zip(ids, writings, strict=True)]
        written = complete_all(self.model, requests, self.decoding, progress)
        return [
            [self._answer(*row) for row in zip(writing.prompts, before, tokens, strict=True)]
            for writing, before, tokens in zip(writings, ids, written, strict=True)
        ]

    def _answer(self, prompt: Prompt, ids: Sequence[int], tokens: list[int]) -> Answer:
        written = Written(len(tokens), cut=len(tokens) >= self.decoding.max_new_tokens)
        text = rendering.read_answer(self.template, tokens, prompt.tools).text
        return Answer(text, written, prompt.messages, prompt_tokens=len(ids))

    def choose_label(
        self, prompts: Sequence[Prompt], labels: Sequence[str], progress: Progress = silent
    ) -> list[Answer]:
        """The most probable of the labels after each prompt, with the probabilities of all labels."""
        ids = [rendering.for_generation(self.template, p) for p in prompts]
        label_ids = [[rendering.completion_ids(self.template, p, label) for label in labels] for p in prompts]
        logp_RL = label_logprobs(self.model, ids, label_ids, self.decoding, progress)
        return _chosen(prompts, labels, logp_RL, ids)

    def by_head(self, prompts: Sequence[Prompt], progress: Progress = silent) -> list[Answer]:
        """What the model's head answers, in passes as in training."""
        if self.plan.method == "tag":
            return self._tags(prompts, progress)
        ids = [rendering.for_generation(self.template, p) for p in prompts]
        rows = [head_sequence(own, self.template.eos, i) for i, own in enumerate(ids)]
        logits_RC = np.concatenate(self._head_logits(rows, progress))
        if (answer := HEAD_ANSWERS.get(self.plan.method)) is None:
            return _chosen(prompts, self.plan.labels, logits_RC, ids)
        return [
            Answer(answer(self.plan, logits_C), Written(0, cut=False), prompt.messages, prompt_tokens=len(own))
            for prompt, logits_C, own in zip(prompts, logits_RC.tolist(), ids, strict=True)
        ]

    def rewards(self, chats: Sequence[Chat]) -> list[float]:
        """What the model's head gives the last message of each conversation."""
        return self.scores([reward_model.conversation(self.template, chat, i) for i, chat in enumerate(chats)])

    def scores(self, rows: Sequence[TokenSequence]) -> list[float]:
        """The same of conversations that are rendered."""
        return [float(logits_MC[0, 0]) for logits_MC in self._head_logits(rows)]

    def _tags(self, prompts: Sequence[Prompt], progress: Progress) -> list[Answer]:
        rows = [tag.sequence(self.template, p, i) for i, p in enumerate(prompts)]
        answers = []
        for prompt, row, logits_MC in zip(prompts, rows, self._head_logits(rows, progress), strict=True):
            count = len(words(" ".join(encoder_text.texts(prompt))))
            tags = " ".join(self.plan.labels[n] for n in logits_MC[:count].argmax(1))
            answers.append(Answer(tags, Written(0, cut=False), prompt.messages, prompt_tokens=len(row.ids) - 1))
        return answers

    @torch.inference_mode()
    def _head_logits(self, rows: Sequence[TokenSequence], progress: Progress = silent) -> list[NDArray[np.float64]]:
        """logits_MC of each row's predictions, in passes as in training."""
        done: dict[int, NDArray[np.float64]] = {}
        for group in split_into_passes(singles([r.ids for r in rows]), self.plan.tokens_per_pass, self.plan.layout):
            microbatch = to_microbatch([rows[i] for i in group], self.plan.layout)
            logits_NC = forward.head_logits(self.model, microbatch).double().cpu().numpy()
            cuts = np.cumsum([rows[i].supervised for i in group])[:-1]
            done |= zip(group, np.split(logits_NC[microbatch.prediction_M], cuts), strict=True)
            progress(len(group))
        return [done[i] for i in range(len(rows))]

    def likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[Message]) -> list[Likelihood]:
        """How likely each answer is after its prompt, end of turn included."""
        rows = []
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids = rendering.for_generation(self.template, prompt)
            rows.append(prompt_then_answer(ids, rendering.completion_ids(self.template, prompt, answer), i))
        nats_R = likelihood.nats(self.model, rows, "shared" if self.decoding.batchable else "padded")
        lengths = [len(f"{answer.reasoning}{answer.text}".encode()) for answer in answers]
        return [Likelihood(length, float(nats)) for length, nats in zip(lengths, nats_R, strict=True)]

    def likelihood(self, documents: Sequence[Example], progress: Progress = silent) -> list[Answer]:
        """The likelihood of each document, split into the same pieces as in training."""
        answers = []
        for i, document in enumerate(documents):
            pieces = rendering.for_training(self.template, document, i, self.plan.max_length)
            nats = sequence_nats(self.model, pieces, self.plan)
            answers.append(Answer("", Likelihood(len(document.text.encode()), nats)))
            progress(1)
        return answers


def _chosen(
    prompts: Sequence[Prompt], labels: Sequence[str], logits_RL: NDArray[np.float64], ids: Sequence[Sequence[int]]
) -> list[Answer]:
    """The most probable label of each row, with the probabilities of all; ``ids``: of the prompts."""
    prob_RL = np.exp(logits_RL - np.logaddexp.reduce(logits_RL, axis=1, keepdims=True))
    answers = []
    for r, prompt in enumerate(prompts):
        probs = {label: round(float(p), 6) for label, p in zip(labels, prob_RL[r], strict=True)}
        best = labels[int(logits_RL[r].argmax())]
        answers.append(Answer(best, LabelProbs(probs), prompt.messages, prompt_tokens=len(ids[r])))
    return answers


@torch.inference_mode()
def sequence_nats(model: LanguageModel, rows: Sequence[TokenSequence], plan: Plan) -> float:
    """Summed negative log-likelihood of the sequences, in nats."""
    groups = split_into_passes(singles([r.ids for r in rows]), plan.tokens_per_pass, plan.layout)
    return sum(float(forward.loss(model, to_microbatch([rows[i] for i in g], plan.layout))) for g in groups)
