"""Exports: how each one compares after reloading, and the note stored with the adapter."""

from __future__ import annotations

from pydantic import Field, TypeAdapter

from tunewright.core.records.common import Record


class ExportCheck(Record):
    """One export, reloaded in a fresh process and compared with the trained model. Difference in logits (nats)."""

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


EXPORTS: TypeAdapter[tuple[ExportCheck, ...]] = TypeAdapter(tuple[ExportCheck, ...])


class AdapterNote(Record):
    """adapter/tunewright.json: what PEFT's own config does not record. All hashes are sha256."""

    base: str = Field(description="The base model, as the config names it.")
    base_sha256: str = Field(description="Hash of the base model; a different base is rejected on loading.")
    template_sha256: str = Field(description="Hash of the chat template and tokenizer.")
    run: str = Field(description="Name of the run.")
    trained_as: str | None = Field(
        None, description="lora, rslora or dora; rslora is exported as lora of the same scaling factor."
    )
    files: dict[str, str] = Field(description="Hash of each file of the adapter.")
