"""Config: every setting as the user asked for it. A field's type, range, default and meaning are declared here and nowhere else.

The YAML reader, the command line's ``key=value``, `docs/config.md` and validation all read them from these classes. ``auto`` is
resolved in `train.planning`.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Recompute = Literal["none", "attention", "layers"]

PATH = "path"
FilePath = Annotated[str, PATH]  # a file or folder; in a config file, relative to that file
Fraction = Annotated[float, Field(ge=0.0, lt=0.9)]
Positive = Annotated[int, Field(ge=1, le=10_000_000)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(Frozen):
    train: FilePath = Field("", description="JSONL, CSV or Parquet file, or a folder of .txt/.md documents.")
    dev: FilePath | None = Field(None, description="Your own dev rows (choose with them); taken as they are.")
    test: FilePath | None = Field(None, description="Your own test rows (claim with them); taken as they are.")
    format: Literal["auto", "chat", "completion", "instruction", "label", "text"] = Field(
        "auto", description="Format of the rows; auto detects it and says so."
    )
    instruction: str | None = Field(
        None, description="System message put before rows that have none; for text/label rows, what to do with the text."
    )
    columns: dict[str, str] = Field({}, description="Standard field -> your field, e.g. {prompt: question, completion: answer}.")
    too_long: Literal["error", "drop"] = Field(
        "error", description="Rows over the sequence limit: refuse the run, or leave them out and say which."
    )


class SplitConfig(Frozen):
    dev: Fraction = Field(0.1, description="Share of rows held out to choose with.")
    test: Fraction = Field(0.2, description="Share of rows held out to claim with.")
    near_duplicate: Annotated[float, Field(ge=0.5, le=1.0)] = Field(
        0.8, description="Jaccard similarity of character 5-grams from which two prompts count as one."
    )


class AdapterConfig(Frozen):
    kind: Literal["lora", "rslora", "dora", "none"] = Field("lora", description="none trains all weights.")
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="Rank of the update.")
    alpha: Annotated[float, Field(gt=0, le=100_000)] = Field(
        32.0, description="Scale numerator: lora and dora scale by alpha/rank, rslora by alpha/sqrt(rank)."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the adapter's input.")
    targets: list[str] = Field(["all-linear"], description="all-linear, or name patterns such as q_proj or 'layers.*.mlp.*'.")


class TrainConfig(Frozen):
    method: Literal["sft"] = Field("sft", description="Training method: sft is supervised fine-tuning.")
    epochs: Auto | Annotated[float, Field(gt=0, le=1000)] = Field("auto", description="Passes over the training rows.")
    steps: Auto | Positive = Field("auto", description="Optimizer steps; instead of epochs.")
    batch_size: Auto | Annotated[int, Field(ge=1, le=65536)] = Field("auto", description="Rows in one optimizer step.")
    tokens_per_pass: Auto | Annotated[int, Field(ge=16)] = Field(
        "auto", description="Tokens in one forward pass; a step is cut into as many passes as it needs."
    )
    max_length: Auto | Annotated[int, Field(ge=8)] = Field(
        "auto", description="Longest row in tokens; documents are cut into pieces of this length."
    )
    lr: Auto | Annotated[float, Field(gt=0, le=1)] = Field("auto", description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Decay after the warm-up.")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="Share of the steps spent warming up.")
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="AdamW decay on matrices.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Largest gradient norm.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Dtype of the forward and backward pass; trained weights are always float32."
    )
    layout: Literal["auto", "shared", "packed", "padded"] = Field(
        "auto", description="How rows share a forward pass: common beginnings computed once, one after another, or padded."
    )
    gradient_checkpointing: Auto | Recompute = Field(
        "auto", description="What the backward pass computes again to save memory: attention weights, or whole layers."
    )
    eval_every: Auto | Positive = Field("auto", description="Steps between dev losses.")
    patience: Annotated[int, Field(ge=0)] = Field(
        3, description="Stop after this many dev losses without a new best; 0 never stops early."
    )


class CheckpointConfig(Frozen):
    every: Auto | Positive = Field("auto", description="Steps between checkpoints.")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="Newest checkpoints to keep.")


class RemoteConfig(Frozen):
    url: str = Field(
        "", description="Base address of an OpenAI-compatible endpoint to compare with, e.g. http://host/v1; empty: none."
    )
    model: str = Field("", description="The model to ask for there.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable that holds its key.")
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(8, description="Requests in flight at once.")


class ProveConfig(Frozen):
    metric: Literal["auto", "accuracy", "exact_match", "field_f1", "chrf", "bits_per_byte"] = Field(
        "auto", description="The metric the verdict is about; auto follows the task."
    )
    evidence: Literal["plain", "standard", "full"] = Field(
        "standard",
        description="plain: prompt, few-shot, constant answer, tuned. standard: all arms, calibration, forgetting. full: also probes, cost, half the data.",
    )
    few_shot: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [4, 8], description="Training rows shown to the few-shot arms; dev chooses among these numbers. [] leaves them out."
    )
    prompts: list[str] = Field([], description="More instructions for the zero-shot arm to try on dev.")
    documents: FilePath | None = Field(None, description="Folder of .txt/.md documents for the retrieval arms.")
    embedder: FilePath | None = Field(
        None, description="Folder of a local encoder (BERT-like, safetensors) to find rows and passages with, instead of BM25."
    )
    max_test_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="Judge at most this many test rows.")
    max_dev_rows: Annotated[int, Field(ge=1)] = Field(40, description="Choose on at most this many dev rows.")
    max_new_tokens: Auto | Positive = Field("auto", description="Longest answer of every arm, in tokens.")
    batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] = Field(
        "auto", description="Rows decoded together; auto follows the free memory."
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="Smallest difference that is of use to you, in units of the metric (0.02 = 2 points)."
    )
    significance: Annotated[float, Field(gt=0, le=0.5)] = Field(0.05, description="1 - confidence of the intervals.")
    target_accuracy: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Labels: share of right answers wanted where the model answers itself; the rest goes to a person."
    )
    remote: RemoteConfig = RemoteConfig()


class ForgetConfig(Frozen):
    regression_rows: FilePath | None = Field(
        None, description="Regression rows, in any format of data.train: evaluated before and after training."
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(0.03, description="Non-inferiority margin on probes (0.03 = 3 points).")
    scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.25, 0.5, 0.75], description="Shares of the trained update to try on dev, besides the whole."
    )
    apply_best_scale: bool = Field(False, description="Keep the adapter scale that the report's rule selects, instead of 1.")


class ExperimentsConfig(Frozen):
    """Trainings beside the run, each in a folder of its own."""

    prompt_distillation: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Distil the rows' instruction into the weights, from this many training prompts; the base is the teacher. 0: off.",
    )
    crossfit: bool = Field(
        False, description="Train on halves of the rows to find answers that look wrong to a model that has not seen them."
    )
    cleaning: bool = Field(False, description="Also train without the flagged rows, and compare.")
    mitigation: bool = Field(
        False, description="Also train with a lower learning rate, and with replay of the base model's answers; compare on dev."
    )


class CostConfig(Frozen):
    requests: Annotated[int, Field(ge=4, le=10_000)] = Field(
        8, description="Test prompts sent one by one to every arm that is timed."
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="Prompts per batch in the throughput measurement.")
    price_per_hour: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Price of this machine for an hour; 0 leaves money out."
    )


class ExportConfig(Frozen):
    merged: bool = Field(True, description="Also write the merged model folder.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Dtype of the merged weights; auto is float32 up to 2 GB, the base's own above."
    )


class Config(Frozen):
    """A run, as asked."""

    model: str = Field("smollm2-135m", description="Model folder, Hub id[@revision], .gguf file, or smollm2-135m.")
    template: FilePath | None = Field(None, description="A Jinja chat template file, for models without one.")
    date: Auto | Annotated[str, AfterValidator(lambda day: datetime.date.fromisoformat(day).isoformat())] = Field(
        "auto",
        description="The day that a chat template which writes today's date is given; auto is the day on which the run begins.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Fixes row order, adapter start and dropout.")
    threads: Auto | Annotated[int, Field(ge=1, le=1024)] = Field("auto", description="CPU threads; auto is one per core.")
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    prove: ProveConfig = ProveConfig()
    forget: ForgetConfig = ForgetConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()
    cost: CostConfig = CostConfig()
    export: ExportConfig = ExportConfig()
