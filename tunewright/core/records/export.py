"""Exports: how each one compares after reloading, and the note stored with the adapter."""

from __future__ import annotations

from pathlib import PurePath

from pydantic import Field, TypeAdapter

from tunewright.core.records.common import Interval, Record, Value, VerdictWord


class Reproduced(Value):
    """Rows of the verdict, answered again by the reloaded export. Scores are by the task's metric."""

    rows: int = Field(description="How many test rows.")
    same: int | None = Field(description="How many have the answer of the verdict; null for documents.")
    score: float = Field(description="Score of the export on them.")
    verdict: float = Field(description="Score on them in the verdict.")
    dtype: str = Field(description="Dtype in which the export computed.")
    judged: str = Field(description="Dtype in which the model of the verdict computed.")


class GgufFile(Value):
    """What a GGUF file contains, whatever it is called."""

    bytes: int = Field(description="Its size.")
    tensors: dict[str, int] = Field(description="How many tensors are stored in each type.")


class Loss(Value):
    """What storing the weights in a type cost, on dev rows: predictions along the reference answers, compared with the
    trained model in float32; and the answers, compared with those that the run's model gave."""

    tokens: int = Field(description="Tokens of the reference answers.")
    kl: float = Field(description="Mean KL divergence (nats) from the trained model's predictions.")
    same_likeliest: float = Field(description="Fraction of the tokens at which both find the same one likeliest.")
    rows: int = Field(description="How many dev rows.")
    score: float = Field(description="Score by the task's metric.")
    difference: float = Field(description="From the run's model on the same rows; positive: better.")
    interval: Interval = Field(description="Of the difference.")
    verdict: VerdictWord = Field(description="What the difference shows.")

    @property
    def passes(self) -> bool:
        """Whether nothing is shown to be lost."""
        return self.verdict != "WORSE" and self.same_likeliest >= 0.95


class ExportCheck(Record):
    """One export, reloaded in a fresh process and compared with the trained model. Difference in logits (nats), or of
    components of vectors of length 1."""

    kind: str = Field(description="The kind of export, which is also the name of its folder.")
    path: str = Field(description="Its folder, or its file in it.")
    dtype: str = Field(description="Dtype of the stored weights.")
    largest_difference: float = Field(description="Largest absolute difference of a logit after any of these prompts.")
    kl: float | None = Field(
        None, description="Mean KL divergence (nats) of its predictions after these prompts from the trained model's."
    )
    same_texts: int = Field(description="How many of them have the same greedy continuation.")
    prompts: int = Field(description="Number of held-out prompts given to both models.")
    encoded: int = Field(description="Those of them given as messages; all became the same token ids in both.")
    rows: int | None = Field(None, description="Rows of the run, as text, that became the same token ids in both.")
    tokenizer: str | None = Field(
        None, description="The program that read these texts; absent if the export has no tokenizer."
    )
    loaded_with: str = Field(description="How the fresh process loaded it.")
    reproduced: Reproduced | None = Field(None, description="Absent if export.rows is 0.")
    file: GgufFile | None = Field(None, description="Of a GGUF file: what it contains.")
    loss: Loss | None = Field(None, description="Of a GGUF file of the merged model: absent without dev rows.")
    made_from: str | None = Field(None, description="Hash of weights, settings and code that it was made from.")
    content: str | None = Field(None, description="Hash of its files, without the card.")

    @property
    def relative_path(self) -> str:
        """Its path in the run folder, wherever that is now."""
        name = PurePath(self.path).name
        return name if name == self.kind else f"{self.kind}/{name}"


EXPORTS: TypeAdapter[tuple[ExportCheck, ...]] = TypeAdapter(tuple[ExportCheck, ...])


class ConsumerCheck(Record):
    """Another program that serves the run's model, given held-out prompts as token ids and compared with the trained
    model in float32. Differences of log probabilities in nats."""

    path: str | None = Field(
        description="The folder or file that it serves, relative to the run folder; null if it does not say."
    )
    consumer: str = Field(description="Name of the program.")
    consumer_version: str | None = Field(None, description="Its version; absent if it does not say.")
    model: str = Field(description="Name of the model in that program.")
    time: str = Field(description="ISO 8601, UTC, to the second.")
    prompts: int = Field(description="Number of prompts, one of them long.")
    same_texts: int = Field(description="How many answers are the trained model's own.")
    tokens: int = Field(description="Tokens of the answers.")
    largest_difference: float = Field(description="Largest difference of the log probability of one of them.")
    allowed: float = Field(description="The largest difference that passes.")
    base_difference: float = Field(description="Largest difference from the base model: without the update.")
    encoded: int | None = Field(
        description="Conversations given as messages that became the same token ids; null if it does not show them."
    )
    cause: str | None = Field(description="A word for what is wrong; null if nothing is.")
    finding: str | None = Field(description="The same as a sentence.")

    @property
    def program(self) -> str:
        """Name and version."""
        return f"{self.consumer} {self.consumer_version}" if self.consumer_version else self.consumer


CONSUMER_CHECKS: TypeAdapter[tuple[ConsumerCheck, ...]] = TypeAdapter(tuple[ConsumerCheck, ...])


class AdapterNote(Record):
    """adapter/tunewright.json: what PEFT's own config does not record. All hashes are sha256."""

    base: str = Field(description="The base model, as the config names it.")
    base_sha256: str = Field(description="Hash of the base model; a different base is rejected on loading.")
    template_sha256: str = Field(description="Hash of the chat template and tokenizer.")
    run: str = Field(description="Name of the run.")
    trained_as: str | None = Field(
        None,
        description="The kind of adapter in the config; rslora is exported as lora of the same scaling factor, pissa "
        "and olora as lora of twice the rank.",
    )
    start_sha256: str | None = Field(
        None, description="Hash of the adapter that training continued from, its config and tensors; null if none."
    )
    files: dict[str, str] = Field(description="Hash of each file of the adapter.")
