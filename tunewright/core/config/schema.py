"""Config: every setting as the user wrote it. A field's type, range, default and meaning are declared only here.

The YAML reader, the ``key=value`` overrides, `docs/config.md` and validation all read them from these classes.
`train.planning` resolves ``auto``.
"""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Collection
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import PydanticCustomError, core_schema

from tunewright.core.config.adapter_kinds import PEFT_SIZES, PeftKind, compiles, offered


class NamedIn:
    """The type of a setting that is a name listed in a later folder, such as a metric, or "auto" unless ``auto`` is
    False: ``where`` is ``module:NAMES``.

    The list is named here, not imported, so that a new metric or row format needs no change in this file. It is read
    when a config is validated or its settings are listed.
    """

    def __init__(self, where: str, auto: bool = True) -> None:
        self.module, self.attribute = where.split(":")
        self.automatic = ("auto",) if auto else ()

    def allowed(self) -> tuple[str, ...]:
        return (*self.automatic, *getattr(importlib.import_module(self.module), self.attribute))

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        if name in self.allowed():
            return name
        raise PydanticCustomError("literal_error", f"Input should be {' or '.join(map(repr, self.allowed()))}")


Auto = Literal["auto"]
Recompute = Literal["none", "attention", "layers"]
# From the fastest on.
Kernels = Literal["compiled", "flex", "fused", "transformers"]
Divergence = Literal["forward", "reverse", "jsd"]
GgufType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]

PATH = "path"
FilePath = Annotated[str, PATH]  # a file or folder; a relative path in a config file is relative to that file
TEMPLATES = ("chatml-tools",)  # values of `template` that are no file: the chat templates in tokens/templates
# What core/locations.py describes: paths, patterns, URLs and data sets of the Hub.
Files = FilePath | list[Annotated[str, PATH, Field(min_length=1)]]
Pattern = Annotated[str, AfterValidator(compiles)]
Fraction = Annotated[float, Field(ge=0.0, lt=0.9)]
Positive = Annotated[int, Field(ge=1, le=10_000_000)]


class Frozen(BaseModel):
    """Immutable; unknown fields and implicit conversions are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Growing(Frozen):
    """Fields named in ``ADDED`` came later: they are not written while they have their defaults, which leaves what was
    made before, and its hash, as it is."""

    ADDED: ClassVar[Collection[str]] = ()

    @model_serializer(mode="wrap")
    def _written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields, added = type(self).model_fields, self.ADDED
        plain = {k for k in added if getattr(self, k) == fields[k].get_default(call_default_factory=True)}
        return {k: v for k, v in serialize(self).items() if k not in plain}


class DataConfig(Frozen):
    train: Files = Field(
        "",
        description="JSONL, JSON, CSV or Parquet file, also compressed, or a folder of .txt/.md documents; a pattern "
        "such as 'data/*.jsonl', a URL, hub:owner/name, or a list of these.",
    )
    dev: Files | None = Field(None, description="Your own dev rows, used instead of a split.")
    test: Files | None = Field(None, description="Your own test rows, used instead of a split.")
    format: Annotated[str, NamedIn("tunewright.data.formats:FORMAT_NAMES")] = Field(
        "auto", description="Format of the rows; auto detects and reports it."
    )
    answer_schema: FilePath | None = Field(
        None,
        description="File with the JSON Schema that answers must satisfy; null infers one from the training answers.",
    )
    instruction: str | None = Field(
        None, description="System message for rows that have none; for text/label rows, the task description."
    )
    columns: dict[str, str] = Field(
        {}, description="Standard field -> your field, e.g. {prompt: question, completion: answer}."
    )
    label_names: list[str] = Field(
        [], description="Names of labels that are integers or true/false, e.g. [negative, positive]."
    )
    encoding: str = Field(
        "utf-8",
        description="Encoding of text files, by its name in Python, such as cp1252; auto: UTF-8, and what is not "
        "valid UTF-8 as UTF-16 or Windows-1252, whichever it looks like.",
    )
    control: Literal["error", "strip", "space"] = Field(
        "error",
        description="Control characters and lone surrogates: fail, remove them, or replace each by a space.",
    )
    empty: Literal["error", "drop"] = Field(
        "error", description="Rows with an empty prompt, answer or message: fail, or drop them and list which."
    )
    turns: Literal["error", "fix"] = Field(
        "error",
        description="Messages in an invalid order: fail, or join neighbours of one role and cut conversations to the "
        "part from the first question to the last answer.",
    )
    invalid: Literal["error", "drop"] = Field(
        "error",
        description="Rows that cannot be read for any reason, including lines that are not valid JSON: fail, or drop "
        "them and list which.",
    )
    duplicates: Literal["keep", "drop"] = Field(
        "keep",
        description="Rows of data.train that repeat prompt, thoughts and answer of an earlier one: keep or drop them.",
    )
    contradictions: Literal["keep", "drop"] = Field(
        "keep",
        description="Rows of data.train with the same prompt and different answers: keep all, or only those with the "
        "most frequent answer; none if no answer is more frequent than the others.",
    )
    leaks: Literal["error", "drop"] = Field(
        "error",
        description="Rows that (nearly) repeat a question of data.dev or data.test: fail, or drop them from "
        "data.train; rows of data.dev that repeat a question of data.test are dropped from data.dev.",
    )
    labels: Literal["keep", "merge"] = Field(
        "keep",
        description="Labels that differ only in case, space or punctuation: keep them apart, or use the most frequent "
        "spelling in data.train for all.",
    )
    unseen_labels: Literal["error", "drop"] = Field(
        "error",
        description="Rows of data.dev and data.test with a label that no row of data.train has: fail, or drop them.",
    )
    too_long: Literal["error", "drop"] = Field(
        "error", description="Rows longer than train.max_length: fail, or drop them and list which."
    )


class SplitConfig(Frozen):
    dev: Fraction = Field(
        0.1, description="Expected fraction of the rows held out for choosing variants and for early stopping."
    )
    test: Fraction = Field(0.2, description="Expected fraction of the rows held out for the verdict.")
    near_duplicate: Annotated[float, Field(ge=0.5, le=1.0)] = Field(
        0.8, description="Jaccard similarity of character 5-grams at which two prompts count as near-duplicates."
    )


class AdapterConfig(Frozen):
    # Came after 0.1.0: not part of a plan, and of its hash, while they have their defaults.
    ADDED: ClassVar[tuple[str, ...]] = (
        "loraplus_lr_ratio",
        "init",
        "start",
        "rank_pattern",
        "alpha_pattern",
        "options",
    )
    # What an existing adapter (`start`) decides.
    OF_START: ClassVar[tuple[str, ...]] = (
        "kind",
        "rank",
        "alpha",
        "targets",
        "init",
        "rank_pattern",
        "alpha_pattern",
        "options",
    )

    kind: Annotated[Literal["lora", "rslora", "dora", "none"] | PeftKind, BeforeValidator(offered)] = Field(
        "lora",
        description="Adapter type; none trains all weights; peft:NAME is one that the library PEFT computes (needs the "
        "package peft).",
    )
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="Rank of the adapter matrices.")
    alpha: Annotated[float, Field(gt=0, le=100_000)] = Field(
        32.0,
        description="Numerator of the LoRA scaling factor: alpha/rank for lora and dora, alpha/sqrt(rank) for rslora.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout probability on the adapter's input.")
    targets: list[str] = Field(
        ["all-linear"], description="Layers to adapt: all-linear, or name patterns such as q_proj or 'layers.*.mlp.*'."
    )
    loraplus_lr_ratio: Annotated[float, Field(gt=0, le=1000)] = Field(
        1.0,
        description="Learning rate of B divided by that of A, which is train.lr (LoRA+, Hayou et al. 2024).",
    )
    init: Literal["zero", "pissa", "olora"] = Field(
        "zero",
        description="Initial A and B of lora, rslora and dora. zero: B is zero; pissa: the principal singular vectors "
        "of the weight; olora: the first columns of its QR decomposition. With each, the update starts at zero.",
    )
    start: FilePath | None = Field(
        None,
        description="Folder of an existing LoRA adapter in PEFT's format, from which training continues: its rank, "
        "alpha and targets are used.",
    )
    rank_pattern: dict[Pattern, Annotated[int, Field(ge=1, le=4096)]] = Field(
        {}, description="Ranks of some layers, by regular expressions that match the end of a name, as in PEFT."
    )
    alpha_pattern: dict[Pattern, Annotated[float, Field(gt=0, le=100_000)]] = Field(
        {}, description="Alphas of some layers, likewise."
    )
    options: dict[str, bool | int | float | str] = Field(
        {}, description="Adapters of PEFT: further fields of its config class, e.g. {oft_block_size: 16}."
    )

    @property
    def of_peft(self) -> bool:
        """Whether PEFT computes it."""
        return self.kind.startswith("peft:")

    @property
    def uniform(self) -> bool:
        """Whether all layers have one rank and alpha, which is all that many programs read."""
        return not (self.rank_pattern or self.alpha_pattern)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Which of rank and alpha this kind has."""
        return () if self.kind == "none" else PEFT_SIZES.get(self.kind, ("rank", "alpha"))

    @property
    def unread(self) -> tuple[str, ...]:
        """Settings that have no effect on this kind of adapter, or that the adapter in `start` decides."""
        every = tuple(name for name in type(self).model_fields if name != "kind")
        if self.kind == "none":
            return every
        if self.of_peft:
            own = ("loraplus_lr_ratio", "init", "start", "rank_pattern", "alpha_pattern", "dropout")
            return (*own, *(name for name in ("rank", "alpha") if name not in self.sizes))
        return self.OF_START if self.start is not None else ("options",)


PreferenceMethod = Literal["dpo", "robust_dpo", "normalized_dpo", "hinge", "ipo", "apo_zero", "simpo", "orpo"]
OtherMethod = Literal["sft", "embed", "distill", "kto", "grpo"]
PREFERENCE: tuple[str, ...] = get_args(PreferenceMethod)
RATED = ("kto",)  # of answers that are desirable or undesirable, each by itself
# Compared with the initial model.
REFERENCED = (*(name for name in PREFERENCE if name not in ("simpo", "orpo")), *RATED)
# Methods whose model answers with a head instead of writing.
HeadMethod = Literal["classify", "multilabel", "regress", "tag", "reward_model"]
HEADS: tuple[str, ...] = get_args(HeadMethod)
EMBEDDING = ("embed",)  # methods whose model gives a text a vector, instead of writing
POOLED = (*HEADS[:3], *EMBEDDING)  # methods that can read one vector for each row of an encoder
ENCODED = (*HEADS[:4], *EMBEDDING)  # methods that can train an encoder
RANKERS = ("reward_model",)  # whose head gives answers a score
PAIRED = (*PREFERENCE, *RANKERS)  # learn from a chosen and a rejected answer
REWARDED = ("grpo",)  # learns from rewards of what the model writes
DISTILLED = ("distill",)  # learns a teacher's next-token distribution


class MethodOptions(Growing):
    """Settings that only some training methods read; all of them in ``ADDED``, with these methods in ``READ_BY``."""

    ADDED: ClassVar[Collection[str]] = (
        *("beta", "label_smoothing", "nll_weight", "gamma_beta_ratio", "desirable_weight", "undesirable_weight"),
        *("loss_type", "num_generations", "temperature", "kl_weight", "num_iterations", "center_rewards_coefficient"),
    )
    READ_BY: ClassVar[dict[str, tuple[str, ...]]] = {
        "beta": (*PREFERENCE, *RATED),
        "desirable_weight": RATED,
        "undesirable_weight": RATED,
        "label_smoothing": ("dpo", "robust_dpo", "normalized_dpo"),
        "nll_weight": tuple(name for name in PREFERENCE if name != "orpo"),
        "gamma_beta_ratio": ("simpo",),
        **dict.fromkeys(("loss_type", "num_generations", "temperature", "kl_weight", "num_iterations"), REWARDED),
        "center_rewards_coefficient": RANKERS,
    }

    beta: Auto | Annotated[float, Field(gt=0, le=100)] = Field(
        "auto",
        description="Preference methods: inverse temperature of the implicit reward (larger stays closer to the "
        "initial model); orpo: weight of the odds-ratio term.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0,
        description="dpo, robust_dpo, normalized_dpo: probability that a preference is flipped (mislabelled).",
    )
    nll_weight: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0,
        description="Preference methods: weight of the chosen answer's negative log-likelihood per token, added to the "
        "loss.",
    )
    gamma_beta_ratio: Annotated[float, Field(ge=0, le=100)] = Field(
        0.5, description="simpo: target reward margin, as a ratio to train.beta."
    )
    desirable_weight: Auto | Annotated[float, Field(gt=0, le=1000)] = Field(
        "auto",
        description="kto: weight of the desirable answers; auto: both kinds have the same total weight, and neither "
        "weight is below 1.",
    )
    undesirable_weight: Auto | Annotated[float, Field(gt=0, le=1000)] = Field(
        "auto", description="kto: weight of the undesirable answers."
    )
    loss_type: Literal["grpo", "dr_grpo", "dapo", "gspo", "rloo", "raft"] = Field(
        "dr_grpo",
        description="grpo: how advantages are computed and tokens weighted; raft trains only on the best sample of a "
        "prompt.",
    )
    num_generations: Annotated[int, Field(ge=2, le=1024)] = Field(
        8, description="grpo: samples for each prompt of a step, which are compared with one another."
    )
    temperature: Annotated[float, Field(gt=0, le=10)] = Field(1.0, description="grpo: temperature of these samples.")
    center_rewards_coefficient: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0,
        description="reward_model: weight of the squared sum of a pair's scores, added to the loss, which keeps scores "
        "near 0.",
    )
    kl_weight: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0, description="grpo: weight of the KL divergence from the initial model, added to the loss."
    )
    num_iterations: Annotated[int, Field(ge=1, le=100)] = Field(
        1,
        description="grpo: optimizer steps on the samples of one model; with several, probability ratios to that model "
        "are clipped.",
    )


class TrainConfig(MethodOptions):
    # A run's config has every setting, so that another version's defaults cannot change it.
    ADDED: ClassVar[Collection[str]] = ()

    method: OtherMethod | HeadMethod | PreferenceMethod = Field(
        "sft",
        description="Training method: sft is supervised fine-tuning; classify, multilabel, regress and tag train a "
        "head, for rows whose answers are labels, sets of labels, numbers or a tag for each word; embed trains vectors "
        "of texts, for search; distill learns a larger model's probabilities (distill.teacher) on the rows; grpo "
        "learns from rewards of what the model writes; kto learns from answers that are desirable or undesirable; the "
        "others learn from pairs of a chosen and a rejected answer, reward_model to give answers a score.",
    )
    epochs: Auto | Annotated[float, Field(gt=0, le=1000)] = Field(
        "auto", description="Epochs: passes over the training rows."
    )
    steps: Auto | Positive = Field("auto", description="Optimizer steps, instead of train.epochs.")
    batch_size: Auto | Annotated[int, Field(ge=1, le=65536)] = Field("auto", description="Rows per optimizer step.")
    tokens_per_pass: Auto | Annotated[int, Field(ge=16)] = Field(
        "auto", description="Maximum tokens per forward pass; a batch is split into as many microbatches as needed."
    )
    max_length: Auto | Annotated[int, Field(ge=8)] = Field(
        "auto", description="Maximum sequence length in tokens; documents are split into pieces of this length."
    )
    lr: Auto | Annotated[float, Field(gt=0, le=1)] = Field("auto", description="Peak learning rate.")
    lr_multiplier: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="Factor that multiplies the automatic learning rate; only if train.lr is auto."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning-rate decay after warmup.")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="Fraction of the steps used for learning-rate warmup."
    )
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="AdamW weight decay, applied to matrices only."
    )
    optimizer: Literal["adamw", "adamw8"] = Field(
        "adamw",
        description="adamw8 keeps AdamW's moments in 8 bits (needs bitsandbytes): if all weights are trained, 10 bytes "
        "per weight instead of 16.",
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients are clipped to this global norm.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Dtype of the forward and backward passes; trained weights are always float32."
    )
    layout: Literal["auto", "shared", "packed", "padded"] = Field(
        "auto",
        description="Layout of a pass: shared computes common prefixes of rows once, packed concatenates, padded pads.",
    )
    kernels: Auto | Kernels = Field(
        "auto",
        description="What computes the layers: transformers' modules; tunewright's fused kernels; those with "
        "FlexAttention; or with whole layers compiled. The last two need a GPU.",
    )
    gradient_checkpointing: Auto | Recompute = Field(
        "auto",
        description="What the backward pass recomputes to save memory: nothing, attention weights, or whole layers.",
    )
    fsdp: bool = Field(
        False,
        description="With several processes (torchrun), each keeps a part of every frozen layer (FSDP2), and gathers a "
        "layer when it computes it: less memory, more traffic.",
    )
    eval_every: Auto | Positive = Field("auto", description="Steps between evaluations of the dev loss.")
    patience: Annotated[int, Field(ge=0)] = Field(
        3, description="Stop after this many dev evaluations without a new best loss; 0 disables early stopping."
    )
    pooling: Literal["auto", "cls", "mean", "last"] = Field(
        "auto",
        description="What the head of an encoder reads, or what becomes a vector (embed): the hidden state of the "
        "first token, the mean of all, or that of the last; auto: as the model's sentence-transformers config says, "
        "otherwise cls (embed: mean). For a decoder, it is always the last.",
    )


class EmbedConfig(Frozen):
    """How train.method=embed makes a vector of a text, in training and in search."""

    query_prefix: str = Field("", description="Text before every query (anchor), such as 'query: '.")
    document_prefix: str = Field("", description="Text before every document (positive, negative).")
    temperature: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05,
        description="Cosines are divided by it; a smaller value gives more weight to the most similar wrong documents.",
    )


class SamplerConfig(Frozen):
    url: str = Field(
        "",
        description="Base URL of a vLLM server with the same base, which draws the samples of training with the "
        "current adapter, e.g. http://localhost:8000/v1; empty: tunewright draws them.",
    )
    api_key_env: str = Field("", description="Environment variable that contains its API key; empty: none.")


class RewardConfig(Frozen):
    grader: dict[str, JsonValue] = Field(
        {},
        description="What an answer is worth, from 0 to 1: a grader object as in OpenAI's API, or a trained reward "
        "model (docs/guide-rewards.md).",
    )
    check: dict[str, JsonValue] = Field(
        {},
        description="A second grader that is never trained on: if the tuned model is BETTER by the reward but shown to "
        "be worse by this one, the verdict is HACKED.",
    )
    sampler: SamplerConfig = SamplerConfig()


class DistillConfig(Frozen):
    """Read by train.method=distill."""

    teacher: str = Field(
        "",
        description="The model to learn from, with the same vocabulary: a model folder, a Hub id[@revision], a .gguf "
        "file, smollm2-135m, or the folder of a run with a merged export.",
    )
    divergence: Divergence = Field(
        "forward",
        description="What is minimised, at every target: forward is KL(teacher || model), reverse is KL(model || "
        "teacher), jsd is the generalized Jensen-Shannon divergence between them.",
    )
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5,
        description="jsd: beta * KL(teacher || m) + (1 - beta) * KL(model || m), m = beta * teacher + (1 - beta) * "
        "model.",
    )
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(1.0, description="The logits of both are divided by it.")
    on_policy: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Fraction of the rows of each step whose own answer is replaced by one that the model has just "
        "written; above 0, the teacher stays in memory.",
    )


class CheckpointConfig(Frozen):
    every: Auto | Positive = Field("auto", description="Steps between checkpoints.")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(2, description="Number of most recent checkpoints to keep.")


class RemoteConfig(Frozen):
    url: str = Field(
        "", description="Base URL of an OpenAI-compatible endpoint to compare with, e.g. http://host/v1; empty: none."
    )
    model: str = Field("", description="Model name to request from the endpoint.")
    api_key_env: str = Field(
        "",
        description="Environment variable that contains the API key; if empty, OPENAI_API_KEY for api.openai.com, and "
        "none for others.",
    )
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(8, description="Maximum number of concurrent requests.")


class ProveConfig(Frozen):
    metric: Annotated[str, NamedIn("tunewright.data.metrics:VERDICT_METRICS")] = Field(
        "auto", description="Metric of the verdict; auto follows the detected task."
    )
    list_order: Literal["ignored", "counted"] = Field(
        "ignored",
        description="Structured answers: whether the order of a list's items counts. If ignored, items are matched so "
        "that as many fields as possible are equal.",
    )
    number_tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Structured answers: largest relative difference of two numbers that count as equal."
    )
    evidence: Literal["plain", "standard", "full"] = Field(
        "standard",
        description="plain: the arms zero_shot (the rows' own instruction), few_shot, constant and tuned, and those of "
        "prove.documents and prove.remote; standard: all arms, calibration, forgetting, re-run noise; full: also "
        "probes, cost, and training on half the data.",
    )
    few_shot: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [4, 8],
        description="Candidate numbers of examples in a prompt, chosen on dev; [] omits the few-shot and nearest arms.",
    )
    prompts: list[str] = Field(
        [],
        description="Additional instructions for the zero-shot arm, chosen on dev; not used if prove.evidence=plain.",
    )
    documents: FilePath | None = Field(None, description="Folder of .txt/.md documents for the retrieval arms.")
    embedder: FilePath | None = Field(
        None,
        description="Folder of a local encoder (BERT-like, safetensors) for retrieval, instead of BM25; for free "
        "text, also for the classifier that distinguishes an arm's answers from the reference answers.",
    )
    max_test_rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Evaluate at most this many test rows; also limits the dev rows that choose variants."
    )
    max_dev_rows: Annotated[int, Field(ge=1)] = Field(
        40, description="Use at most this many dev rows to choose variants."
    )
    max_new_tokens: Auto | Positive = Field("auto", description="Maximum answer length of every arm, in tokens.")
    batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] = Field(
        "auto",
        description="Rows decoded together; auto: about as many as fit in a fifth of the machine's memory (a power of "
        "two, at most 512).",
    )
    decoding: Annotated[
        list[Annotated[str, NamedIn("tunewright.core.sampling:DECODINGS", auto=False)]], Field(min_length=1)
    ] = Field(
        ["greedy", "penalty", "sampled"],
        description="Free text: ways to choose tokens, of which dev chooses one for each arm; chat and exports follow. "
        "greedy: the most probable; penalty: with a repetition penalty of 1.1; sampled: at temperature 0.7.",
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="Smallest difference that matters to you, in units of the metric (0.02 = 2 points)."
    )
    significance: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.05, description="Significance level: 1 - confidence level of the intervals."
    )
    target_accuracy: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95,
        description="Label tasks: required accuracy of answers that are not deferred to a person.",
    )
    remote: RemoteConfig = RemoteConfig()


class ForgetConfig(Frozen):
    regression_rows: Files | None = Field(
        None,
        description="Files of your own rows that must not get worse: scored before and after training. Any format that "
        "data.train accepts.",
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.03, description="Non-inferiority margin on the probes (0.03 = 3 points)."
    )
    scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.25, 0.5, 0.75],
        description="Factors to multiply the trained update by, each at most 1: tried on dev, in addition to 1.",
    )
    apply_best_scale: bool = Field(
        False,
        description="Multiply the trained update by the factor (of forget.scales, or 1) that the rule selects.",
    )


class ExperimentsConfig(Frozen):
    """Extra training runs (branches), each in its own folder."""

    prompt_distillation: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Distil the rows' instruction into the weights on this many training prompts, with the base as "
        "teacher; 0: off.",
    )
    crossfit: bool = Field(False, description="Train on each half of the rows to flag likely errors in the other half.")
    cleaning: bool = Field(False, description="Also train without the flagged rows, and compare on the same test rows.")
    mitigation: bool = Field(
        False,
        description="Also train with a lower learning rate, and with replay of the base's answers; compare on dev.",
    )
    raft: bool = Field(
        False,
        description="grpo: also fine-tune on the best samples of the untrained model, chosen among as many sampled "
        "tokens, and compare on the same test rows.",
    )


class SweepConfig(Frozen):
    """Several recipes, of which the run uses the best by dev loss if it is shown to beat the default."""

    grid: dict[str, list[bool | int | float | str | list[str]]] = Field(
        {}, description="Settings of adapter and train -> values to try, in all combinations; empty: no sweep."
    )
    halve: bool = Field(
        True,
        description="Train all recipes to a quarter of their steps, the better half of them to half of their steps, "
        "and half of those to the end.",
    )
    seeds: Annotated[int, Field(ge=2, le=20)] = Field(
        2, description="Seeds for the default and for the best other recipe, whose difference decides."
    )


class CostConfig(Frozen):
    requests: Annotated[int, Field(ge=4, le=10_000)] = Field(
        8, description="Test prompts per timed arm, sent one at a time."
    )
    batch_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        8, description="Prompts per batch in the throughput measurement."
    )
    price_per_hour: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Price of this machine per hour; 0 omits prices."
    )


class ExportConfig(Frozen):
    to: list[Annotated[str, NamedIn("tunewright.export:KINDS", auto=False)]] = Field(
        ["adapter", "merged"],
        description="Exports to write. For an encoder, if all weights are trained, and with train.method=tag or embed, "
        "there is no adapter, only a merged model.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Dtype of the merged weights; auto: the one in which the verdict's answers were computed."
    )
    rows: Annotated[int, Field(ge=0)] = Field(
        32, description="Rows of the verdict that each export answers again, to compare answers and score; 0: none."
    )
    gguf: Auto | Annotated[list[GgufType], Field(min_length=1)] = Field(
        "auto",
        description="Types of the weights in GGUF files, one file each, e.g. [f16, q8_0]; auto: f16 below a billion "
        "parameters, q8_0 up to four billion, otherwise q4_k_m, and a more precise type if that loses too much. "
        "Types that end in k or k_m need the package llama-cpp-python.",
    )
    llama_cpp: FilePath | None = Field(
        None,
        description="Folder of llama.cpp's source, whose convert_hf_to_gguf.py then writes GGUF files of models that "
        "tunewright cannot write.",
    )


class Config(Frozen):
    """All settings of a run."""

    model: str = Field("smollm2-135m", description="Model folder, Hub id[@revision], .gguf file, or smollm2-135m.")
    quantise: Literal["none", "stored", "nf4", "gguf"] = Field(
        "none",
        description="How the base's linear layers are held in memory. none: dense, in train.dtype; stored: left in the "
        "model's files, in their own dtype, and read from there; nf4: in 4 bits, for every arm (needs bitsandbytes); "
        "gguf: in the blocks of the model's .gguf file. Only nf4 changes the numbers.",
    )
    template: FilePath | None = Field(
        None,
        description="Chat template to use instead of the model's: a Jinja file, or chatml-tools (with tools and "
        "thoughts).",
    )
    date: Auto | Annotated[str, AfterValidator(lambda day: datetime.date.fromisoformat(day).isoformat())] = Field(
        "auto",
        description="Current date as seen by chat templates that print it; auto: the day the run starts.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0,
        description="Determines row order, adapter initialisation, dropout, and the samples of the model in training "
        "(train.method=grpo, distill.on_policy).",
    )
    threads: Auto | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="CPU threads; auto: one per core, and fewer in training steps while other processes use the cores. "
        "A number never changes, so a run that is repeated on the same machine has the same bits.",
    )
    track: list[Annotated[str, NamedIn("tunewright.track:TRACKERS", auto=False)]] = Field(
        [],
        description="Trackers that follow the run: trackio, mlflow, wandb, tensorboard. They get the curves, the plan, "
        "the verdict and report.html, which quotes rows; where a tracker sends them is set in its own way.",
    )
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    reward: RewardConfig = RewardConfig()
    distill: DistillConfig = DistillConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    prove: ProveConfig = ProveConfig()
    forget: ForgetConfig = ForgetConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()
    sweep: SweepConfig = SweepConfig()
    cost: CostConfig = CostConfig()
    export: ExportConfig = ExportConfig()
