"""From the plan to the weights: receipt, self-test, metrics, checkpoints, training, profile. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, TypeAdapter

from tunewright.core.records.common import Line, Record, Value


class ModelFacts(Value):
    """The base model, read from its folder and probed on this machine. Lengths in tokens."""

    name: str = Field(description="As the config names it.")
    path: str = Field(description="Folder it was read from.")
    model_type: str = Field(description="transformers' name of the architecture.")
    hidden: int = Field(description="Width of the residual stream.")
    layers: int = Field(description="Number of layers.")
    heads: int = Field(description="Attention heads per layer.")
    cached: int | None = Field(None, description="Numbers that a cache keeps for each token and layer.")
    head_width: int | None = Field(None, description="Numbers of an attention head.")
    vocabulary: int = Field(description="Rows of the embedding.")
    context: int = Field(description="Longest sequence, in tokens.")
    parameters: int = Field(description="Number of parameters.")
    dtype: str = Field(description="Dtype of the stored weights, as safetensors names it.")
    window: int | None = Field(description="Sliding attention window in tokens; null if there is none.")
    shareable: bool = Field(description="Whether rows with a common prefix may share its computation.")
    packable: bool = Field(description="Whether several rows may be computed in one pass.")
    leak: str = Field(description="Why not, if either is false.")
    draws: bool = Field(description="Whether the model itself applies dropout during training.")
    fused: bool = Field(description="Whether the fused kernels support its layers.")
    sha256: str = Field(description="Hash over config and weight files, and how weights are rounded.")
    packed: str | None = Field(
        None, description="nf4, or the GGUF file whose blocks are kept; empty if layers are dense."
    )
    packed_bytes: int | None = Field(None, description="Memory that these take, about; 0 if layers are dense.")
    encoder: bool | None = Field(None, description="Whether its tokens see both sides; it cannot write.")
    pooling: str | None = Field(
        None, description="How its folder says that an encoder is pooled; empty if it does not."
    )

    @property
    def holding(self) -> str:
        """How layers that are not dense are held, after "held"."""
        gb = f"about {(self.packed_bytes or 0) / 1e9:.2g} GB of weights"
        known = {"nf4": f"in NF4, {gb}", "stored": "in the model's files, and read from there"}
        return known.get(self.packed or "", f"in the blocks of {self.packed}, {gb}")

    @property
    def title(self) -> str:
        """Its name; with its weights' type, if they are rounded."""
        return f"{self.name} in NF4" if self.packed == "nf4" else self.name


class TemplateFacts(Value):
    """The chat template: its arguments, and the date that it prints."""

    kwargs: dict[str, JsonValue] = Field(description="Arguments that are always passed to the template.")
    note: str = Field(description="Why they are passed; empty if there are none.")
    day: str = Field(description="Date (YYYY-MM-DD) that the template prints as today's; empty if it prints none.")


class MachineFacts(Value):
    """The machine of the run. Memory in GB (1e9 bytes), speed in GFLOP/s, both measured before training."""

    device: str = Field(description="cpu or cuda.")
    cores: int = Field(description="Threads that torch uses.")
    memory_gb: float = Field(description="Memory of the device, GB.")
    free_gb: float = Field(description="Free memory when the run began, GB.")
    fp32_gflops: float = Field(description="Speed of a float32 matrix product, GFLOP/s.")
    bf16_gflops: float = Field(description="Speed of a bfloat16 matrix product, GFLOP/s.")
    processor: str = Field(description="Name of the processor or GPU.")


class Lengths(Value):
    """Lengths of one side's sequences under the model's own template, in tokens."""

    rows: int = Field(description="Sequences.")
    tokens_median: float = Field(description="Median length, in tokens.")
    targets_median: float = Field(description="Median number of supervised tokens.")
    tokens_p95: float = Field(description="95th percentile of the lengths, in tokens.")
    targets_p95: float = Field(description="95th percentile of the supervised tokens.")
    tokens_longest: float = Field(description="Longest sequence, in tokens.")
    targets_longest: float = Field(description="Largest number of supervised tokens in a sequence.")


class Receipt(Record):
    """What is needed to repeat the run, and to detect what has changed since. Written before training."""

    command: str = Field(description="The command that started the run.")
    versions: dict[str, str] = Field(description="Versions of Python and of the packages that the results depend on.")
    hashes: dict[str, str] = Field(description="sha256 of data, model, template, plan, protocol, code and config.")
    model: ModelFacts = Field(description="The base model.")
    template: TemplateFacts = Field(description="How the chat template is rendered.")
    machine: MachineFacts = Field(description="The machine of the run.")
    seed: int = Field(description="Seed of all random draws.")
    threads: int = Field(description="Threads of torch.")
    crowded_steps: int | None = Field(
        None, description="Training steps with fewer threads, because other processes used the cores; set after it."
    )
    instruction: str | None = Field(description="The most frequent system message of the training rows; null if none.")
    tools: tuple[dict[str, JsonValue], ...] | None = Field(
        None, description="The most frequent tools of the training rows that have tools, if there are any."
    )
    lengths: dict[str, Lengths] = Field(description="By side; a side without rows is absent.")


class SelfTestFinding(Value):
    """One property, tested on rows of the run."""

    check: str = Field(description="Name of the property.")
    result: str = Field(description="What was measured, as a sentence.")
    passed: bool = Field(description="Whether the property holds; if not, the plan uses a slower computation.")


class SelfTest(Record):
    """What the self-test before the first step measured. Time in seconds."""

    seconds: float = Field(description="How long the self-test took, in seconds.")
    findings: tuple[SelfTestFinding, ...] = Field(description="In the order of the checks.")


class StartLine(Line):
    """First line of metrics.jsonl, if there are dev rows: the untrained model. Loss in the unit of the other lines."""

    step: Literal[0] = Field(description="Always 0.")
    dev_loss: float = Field(
        description="Loss on all dev rows before the first step; minus their mean reward, in learning from rewards."
    )


class StepLine(Line):
    """One optimizer step. Time in seconds; losses in nats per supervised token, for methods that divide by these tokens
    (sft and distill), else per unit of what the method divides by."""

    step: int = Field(ge=1, description="Steps taken, including this one.")
    loss: float = Field(description="Training loss of the step's rows.")
    lr: float = Field(description="Learning rate of the step.")
    grad_norm: float = Field(description="Norm of the gradient before clipping.")
    tokens: int = Field(description="Tokens of the step's rows.")
    computed: int = Field(description="Tokens that went through the model; fewer than `tokens` if rows share a prefix.")
    supervised: float = Field(description="Total weight of the supervised tokens.")
    seconds: float = Field(description="Duration of the step without the dev evaluation, in seconds.")
    metrics: dict[str, float] | None = Field(
        None, description="Additional metrics of the method, by name; absent if none."
    )
    dev_loss: float | None = Field(None, description="Loss on all dev rows after the step, if it was measured.")
    threads: int | None = Field(
        None, description="Threads of the step, if fewer than planned because other processes used the cores."
    )


def _line_kind(line: object) -> str:
    step = line.get("step") if isinstance(line, dict) else getattr(line, "step", None)
    return "<StartLine>" if step == 0 else "<StepLine>"


MetricsLine = Annotated[
    Annotated[StartLine, Tag("<StartLine>")] | Annotated[StepLine, Tag("<StepLine>")], Discriminator(_line_kind)
]
METRICS: TypeAdapter[StartLine | StepLine] = TypeAdapter(MetricsLine)


class CheckpointState(Record):
    """The state of a checkpoint besides weights and optimizer moments. Loss in the unit of metrics.jsonl."""

    step: int = Field(description="Steps taken.")
    hashes: dict[str, str] = Field(
        description="sha256 of data, model, template and plan, which a resumed run must match."
    )
    best: float | None = Field(description="Lowest dev loss so far; null without dev rows.")
    best_step: int | None = Field(description="The step of that loss.")
    best_sha256: str | None = Field(description="Hash of the file that holds the weights of that step.")
    stale_evals: int = Field(description="Dev evaluations since then, none of them better.")


class BranchTraining(Record):
    """How the training of a branch ended. Losses in the unit of metrics.jsonl."""

    steps: int = Field(description="Steps taken.")
    stopped_early: bool = Field(
        description="Whether training ended before the planned steps, because dev loss had stopped falling."
    )
    best_step: int | None = Field(description="The step whose weights were kept; null without dev rows.")
    best_dev_loss: float | None = Field(description="Dev loss of that step.")
    first_dev_loss: float | None = Field(description="Dev loss before the first step.")
    seconds: float = Field(
        description="Duration in seconds: of the last process that trained, or of all steps if these took longer."
    )
    tokens: int = Field(description="Tokens of all rows of all steps.")
    crowded_steps: int | None = Field(
        None, description="Steps with fewer threads than planned, whose last bits depend on what else the machine did."
    )
    of_rewards: Literal[True] | None = Field(
        None, description="Whether dev losses are minus mean rewards; absent if they are not."
    )
    weights_sha256: str = Field(description="Hash of checkpoints/final.safetensors.")


class Training(BranchTraining):
    """How the run's own training ended. Losses in the unit of metrics.jsonl, memory in GB."""

    peak_gb: float = Field(description="Peak memory of the process, GB (1e9 bytes).")
    trained: int = Field(description="Number of trained parameters.")
    total: int = Field(description="Number of parameters, including the adapter's.")


def _training_kind(value: object) -> str:
    of_run = "total" in value if isinstance(value, dict) else isinstance(value, Training)
    return "<Training>" if of_run else "<BranchTraining>"


AnyTraining = Annotated[
    Annotated[Training, Tag("<Training>")] | Annotated[BranchTraining, Tag("<BranchTraining>")],
    Discriminator(_training_kind),
]
ANY_TRAINING: TypeAdapter[Training | BranchTraining] = TypeAdapter(AnyTraining)


class Profile(Record):
    """Where the time of a training step goes, averaged over a few steps. Time in seconds, work in GFLOP."""

    seconds: float = Field(description="Duration of a step, in seconds.")
    rows: int = Field(description="Rows per step.")
    tokens: int = Field(description="Tokens of a step's rows.")
    computed: int = Field(description="Tokens per step that went through the model.")
    supervised: float = Field(description="Supervised tokens per step.")
    gflop: float = Field(description="Work of a step, in GFLOP, for the tokens computed.")
    logical_gflop: float = Field(description="Work of a step, in GFLOP, if each row were computed alone.")
    peak_gflops: float = Field(description="Best measured speed of this machine's matrix products, GFLOP/s.")
    seconds_by_kind: dict[str, float] = Field(description="Seconds of a step by kind of operation.")
    of_peak: float = Field(description="Fraction of the peak speed that a step reaches.")
