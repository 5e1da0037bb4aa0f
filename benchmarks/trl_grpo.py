"""TRL's GRPOTrainer as a timed process, with transformers' generation, on prompts that are already tokenized. Every
sample has the same number of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from subject import Wire
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl_steps import StepOnRequest, settings, tuned_model


class Tokenized(GRPOTrainer):  # type: ignore[misc]
    """``ids``: of each prompt."""

    ids: dict[str, list[int]]

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        return [self.ids[prompt] for prompt in prompts], None, {}


def main() -> None:
    wire = Wire()
    setup = wire.setup
    torch.set_num_threads(setup["threads"])
    rows, length = json.loads(Path(setup["rows"]).read_text(encoding="utf-8")), setup["max_new_tokens"]
    program: dict[str, Any] = {}
    exec(setup["grader"], program)

    def reward(completions: list[str], completion_ids: list[list[int]], item: list[str], **_: Any) -> list[float]:
        assert all(len(ids) == length for ids in completion_ids)
        answers = zip(completions, map(json.loads, item), strict=True)
        return [program["grade"]({"output_text": text}, own) for text, own in answers]

    args = GRPOConfig(
        num_generations=setup["num_generations"],
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length},
        loss_type=setup["loss_type"],
        shuffle_dataset=False,
        **settings({**setup, "batch": setup["batch"] * setup["num_generations"]}),
    )
    trainer = Tokenized(
        model=tuned_model(setup),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "item": json.dumps(r["item"])} for r in rows]),
        processing_class=AutoTokenizer.from_pretrained(setup["model"]),
        callbacks=[StepOnRequest(wire)],
    )
    trainer.ids = {r["prompt"]: r["ids"] for r in rows}
    trainer.train()


main()
