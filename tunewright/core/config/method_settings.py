"""Settings that a training method does not read, or cannot work with."""

from __future__ import annotations

from collections.abc import Callable

from tunewright.core.config.schema import (
    DISTILLED,
    EMBEDDING,
    ENCODED,
    HEADS,
    POOLED,
    RANKERS,
    RATED,
    REFERENCED,
    REWARDED,
    Config,
    DistillConfig,
    MethodOptions,
    ProveConfig,
)
from tunewright.core.errors import ConfigError

Conflict = Callable[[str, str, str], ConfigError]  # of a key, a message and a fix
# Settings of chats, of written answers and of labels, by section.
UNREAD_BY_EMBEDDING: dict[str, tuple[str, ...]] = {
    "data": ("answer_schema", "instruction", "label_names", "turns", "labels", "unseen_labels", "contradictions"),
    "prove": (
        *("list_order", "number_tolerance", "few_shot", "prompts", "documents", "embedder", "remote"),
        *("max_new_tokens", "batch_size", "decoding", "target_accuracy"),
    ),
    "forget": ("regression_rows", "margin", "scales", "apply_best_scale"),
    "experiments": ("prompt_distillation", "crossfit", "mitigation"),
    "cost": ("requests", "batch_size", "price_per_hour"),
}


def check(config: Config, conflict: Conflict) -> None:
    """Raises CONFIG_CONFLICT."""
    method = config.train.method
    for name, readers in MethodOptions.READ_BY.items():
        if method not in readers and getattr(config.train, name) != MethodOptions.model_fields[name].default:
            message = f"train.method={method} does not read train.{name}."
            fix = f"remove it, or choose a method that reads it: {', '.join(readers)}."
            raise conflict(f"train.{name}", message, fix)
    if method not in POOLED and config.train.pooling != "auto":
        fix = f"remove it, or choose a method that reads it: {', '.join(POOLED)}."
        raise conflict("train.pooling", f"train.method={method} does not read train.pooling.", fix)
    if method in REFERENCED and config.adapter.dropout:
        message = (
            f"train.method={method} uses the initial model as its reference; adapter.dropout would make it differ."
        )
        raise conflict("adapter.dropout", message, "leave it at 0.")
    if method in RATED:
        _check_rated(config, conflict)
    if method in HEADS:
        _check_heads(config, conflict)
    if method in RANKERS:
        _check_rankers(config, conflict)
    if method in REWARDED and not config.reward.grader:
        fix = "set it to a grader object (docs/guide-rewards.md)."
        raise conflict("reward.grader", f"train.method={method} needs reward.grader.", fix)
    given = [k for k, v in config.reward if v != type(config.reward).model_fields[k].default]
    if method not in REWARDED and given:
        fix = "remove it, or set train.method=grpo."
        raise conflict(f"reward.{given[0]}", f"train.method={method} does not read reward.{given[0]}.", fix)
    if method in REWARDED:
        _check_rewarded(config, conflict)
    elif config.experiments.raft:
        message = f"experiments.raft chooses among samples, which train.method={method} does not draw."
        raise conflict("experiments.raft", message, "leave it out, or set train.method=grpo.")
    _check_embedding(config, conflict)
    _check_distilled(config, conflict)
    _check_experiments(config, conflict)
    _check_forgetting(config, conflict)
    if method != "sft" and config.sweep.grid:
        message = f"a sweep compares recipes by the likelihood of answers; train.method={method} needs another measure."
        raise conflict("sweep.grid", message, "train once for each recipe, with train.method=... and --name.")


def _check_experiments(config: Config, conflict: Conflict) -> None:
    """Those that train an adapter by fine-tuning."""
    for name in ("prompt_distillation", "crossfit", "mitigation"):
        if getattr(config.experiments, name) and config.train.method != "sft":
            message = f"experiments.{name} is for fine-tuning; train.method={config.train.method} does not read it."
            raise conflict(f"experiments.{name}", message, "leave it out, or set train.method=sft.")
        if getattr(config.experiments, name) and config.adapter.kind == "none":
            message = f"experiments.{name} needs an adapter, and adapter.kind=none trains all weights."
            raise conflict(f"experiments.{name}", message, "leave it out, or choose another adapter.kind.")


def _check_forgetting(config: Config, conflict: Conflict) -> None:
    """What is asked for where it is not measured."""
    for name in ("regression_rows", "apply_best_scale"):
        if getattr(config.forget, name) and config.prove.evidence == "plain":
            message = f"prove.evidence=plain does not read forget.{name}."
            raise conflict(f"forget.{name}", message, "leave it out, or set prove.evidence=standard.")
    if config.forget.apply_best_scale and config.adapter.kind == "none":
        message = "forget.apply_best_scale multiplies an adapter's update, and adapter.kind=none trains all weights."
        raise conflict("forget.apply_best_scale", message, "leave it out, or choose another adapter.kind.")


def _check_distilled(config: Config, conflict: Conflict) -> None:
    """A teacher where one is learned from, and nowhere else."""
    method, given = config.train.method, config.distill
    changed = [name for name in DistillConfig.model_fields if getattr(given, name) != getattr(DistillConfig(), name)]
    if method not in DISTILLED and changed:
        fix = "remove it, or set train.method=distill."
        raise conflict(f"distill.{changed[0]}", f"train.method={method} does not read distill.{changed[0]}.", fix)
    if method in DISTILLED and not given.teacher:
        fix = "name the model to learn from: distill.teacher=FOLDER."
        raise conflict("distill.teacher", f"train.method={method} needs distill.teacher.", fix)
    if method in DISTILLED and config.train.fsdp:
        message = f"train.method={method} does not support train.fsdp."
        raise conflict("train.fsdp", message, "leave it at false.")
    branches = {"prove.evidence": config.prove.evidence == "full", "experiments.cleaning": config.experiments.cleaning}
    for name in (name for name, asked in branches.items() if asked and given.on_policy):
        message = f"{name} needs another training run, which distill.on_policy does not support."
        raise conflict(name, message, "leave it at its default.")
    if "beta" in changed and given.divergence != "jsd":
        message = f"distill.divergence={given.divergence} does not read distill.beta."
        raise conflict("distill.beta", message, "remove it, or set distill.divergence=jsd.")


def _check_rated(config: Config, conflict: Conflict) -> None:
    """Their reference is the model without its adapter."""
    method = config.train.method
    if config.adapter.kind == "none":
        message = f"train.method={method} compares with the initial model in every step: the model without its adapter."
        raise conflict("adapter.kind", message, "choose lora, rslora or dora.")
    if config.adapter.start is not None:
        message = f"train.method={method} compares with the model without its adapter, not with adapter.start."
        raise conflict("adapter.start", message, "merge that adapter into the model, and train on the merged model.")


def _check_heads(config: Config, conflict: Conflict) -> None:
    """They answer with a head, and do not write."""
    method = config.train.method
    for name, value in (("labels", "merge"), ("unseen_labels", "drop")):
        if method != "classify" and getattr(config.data, name) == value:
            message = f"data.{name}={value} is for rows with one label each, and not for train.method={method}."
            raise conflict(f"data.{name}", message, "remove it.")
    if method == "tag":
        _check_tags(config, conflict)
    if method == "regress" and config.data.label_names:
        message = "data.label_names names labels; train.method=regress learns numbers."
        raise conflict("data.label_names", message, "remove it, or use train.method=classify.")
    if config.adapter.of_peft or config.adapter.start is not None:
        what = f"adapter.kind={config.adapter.kind}" if config.adapter.of_peft else "adapter.start"
        fix = "choose lora, rslora or dora." if config.adapter.of_peft else "remove it."
        raise conflict(what.partition("=")[0], f"{what} is not supported with the head of train.method={method}.", fix)
    for name in ("regression_rows", "apply_best_scale"):
        if getattr(config.forget, name):
            message = f"forget.{name} needs a model that writes; that of train.method={method} does not."
            raise conflict(f"forget.{name}", message, "leave it out.")


def _check_rankers(config: Config, conflict: Conflict) -> None:
    """They give scores to answers, which no arm writes."""
    method = config.train.method
    written = ("documents", "embedder", "few_shot", "prompts", "max_new_tokens", "decoding")
    own = {name: (getattr(config.prove, name), type(config.prove).model_fields[name].default) for name in written}
    changed = [f"prove.{name}" for name, (value, default) in own.items() if value != default]
    changed += ["prove.remote.url"] if config.prove.remote.url else []
    for name in changed:
        message = f"train.method={method} compares ways to rank given answers; {name} is for answers that are written."
        raise conflict(name, message, "leave it out.")


def _check_embedding(config: Config, conflict: Conflict) -> None:
    """Raises CONFIG_CONFLICT for settings of vectors without the method, and for those of written answers with it."""
    method, unread = config.train.method, [("embed", tuple(type(config.embed).model_fields))]
    if method in EMBEDDING:
        unread = list(UNREAD_BY_EMBEDDING.items())
        if config.template is not None:
            message = f"train.method={method} reads texts, not chats."
            raise conflict("template", message, "remove it; embed.query_prefix is the text before a query.")
        if config.quantise != "none":
            message = f"train.method={method} compares with the model before training, which quantise changes."
            raise conflict("quantise", message, "leave it out.")
        if config.adapter.dropout:
            message = f"train.method={method} computes the vectors of a step twice, and they must be the same."
            raise conflict("adapter.dropout", message, "leave it at 0.")
    for section, names in unread:
        given = getattr(config, section)
        for name in names:
            if getattr(given, name) != type(given).model_fields[name].get_default(call_default_factory=True):
                message = f"train.method={method} does not read {section}.{name}."
                fix = "remove it." if method in EMBEDDING else "remove it, or set train.method=embed."
                raise conflict(f"{section}.{name}", message, fix)


def _check_tags(config: Config, conflict: Conflict) -> None:
    """A text is tagged as it is: without an instruction, a chat template, or arms that prompt a model."""
    unread = {
        "template": config.template,
        "data.instruction": config.data.instruction,
        "prove.prompts": config.prove.prompts,
        "prove.documents": config.prove.documents,
        "prove.embedder": config.prove.embedder,
        "prove.remote.url": config.prove.remote.url,
        "prove.few_shot": config.prove.few_shot != ProveConfig().few_shot,
        "prove.max_new_tokens": config.prove.max_new_tokens != ProveConfig().max_new_tokens,
        "prove.decoding": config.prove.decoding != ProveConfig().decoding,
    }
    for name in (name for name, value in unread.items() if value):
        raise conflict(name, f"train.method=tag does not read {name}.", "leave it out.")


def _check_rewarded(config: Config, conflict: Conflict) -> None:
    """Raises CONFIG_CONFLICT for what rows without answers, or branches that sample, cannot do yet."""
    method = config.train.method
    if config.adapter.dropout:
        message = "samples are drawn without dropout, which would train another model than the one sampled."
        raise conflict("adapter.dropout", message, "leave it at 0.")
    if config.train.kl_weight and config.adapter.kind == "none":
        message = "train.kl_weight compares with the initial model: the model without its adapter."
        raise conflict("train.kl_weight", message, "choose another adapter.kind, or remove it.")
    if config.train.kl_weight and config.train.loss_type == "rloo":
        message = "train.loss_type=rloo has its KL in the reward, which is not supported."
        raise conflict("train.kl_weight", message, "remove it, or choose another train.loss_type.")
    updates, every = config.train.num_iterations, config.checkpoint.every
    if every != "auto" and every % updates:
        message = f"checkpoints are written between rollouts, which are train.num_iterations={updates} steps long."
        raise conflict("checkpoint.every", message, f"choose a multiple of {updates}.")
    if config.reward.sampler.url:
        _check_sampler(config, conflict)
    elif config.reward.sampler.api_key_env:
        message = "reward.sampler.api_key_env is for reward.sampler.url, which is empty."
        raise conflict("reward.sampler.api_key_env", message, "set both, or none.")
    if config.forget.regression_rows:
        message = f"train.method={method} reads rows without answers, and regression rows have answers."
        raise conflict("forget.regression_rows", message, "leave it out.")
    for name in type(config.experiments).model_fields:
        if name != "raft" and getattr(config.experiments, name):
            message = f"experiments.{name} needs another training run, which train.method={method} does not support."
            raise conflict(f"experiments.{name}", message, "leave it out.")
    if config.prove.evidence == "full":
        message = f"prove.evidence=full needs another training run, which train.method={method} does not support."
        raise conflict("prove.evidence", message, "use standard or plain.")


def _check_sampler(config: Config, conflict: Conflict) -> None:
    """What vLLM can draw samples with, and what its log-probabilities are of."""
    t, adapter = config.train, config.adapter
    if adapter.kind not in ("lora", "rslora") or not adapter.uniform:
        message = "vLLM loads LoRA adapters of one rank and alpha while it runs, and no others."
        raise conflict("reward.sampler.url", message, "choose adapter.kind=lora without patterns, or remove it.")
    if t.temperature != 1:
        message = "the log-probabilities of vLLM are those at temperature 1."
        raise conflict("train.temperature", message, "leave it at 1, or remove reward.sampler.")
    if t.kl_weight:
        message = "samples of a server are weighted, which train.kl_weight does not support."
        raise conflict("train.kl_weight", message, "leave it at 0, or remove reward.sampler.")
    if t.loss_type == "rloo":
        message = "samples of a server are weighted token by token; train.loss_type=rloo has one ratio for a sample."
        raise conflict("train.loss_type", message, "choose another train.loss_type, or remove reward.sampler.")


def check_model(config: Config, encoder: bool) -> None:
    """Raises CONFIG_CONFLICT for what the kind of model cannot do. An encoder has no output head, so it does not write,
    and it follows no instruction; a decoder's tokens see only those before."""

    def conflict(where: str, message: str, fix: str) -> ConfigError:
        return ConfigError("CONFIG_CONFLICT", message, where=where, fix=fix)

    method = config.train.method
    if not encoder:
        if config.train.pooling in ("cls", "mean"):
            message = f"train.pooling={config.train.pooling} is for encoders; a decoder's head reads the last token."
            raise conflict("train.pooling", message, "leave it at auto.")
        return
    if method not in ENCODED:
        message = f"train.method={method} needs a model that writes, and {config.model} is an encoder."
        raise conflict("train.method", message, f"choose one of {', '.join(ENCODED)}; or another model.")
    if config.adapter.of_peft:
        message = f"adapter.kind={config.adapter.kind} is for models that write, and {config.model} is an encoder."
        raise conflict("adapter.kind", message, "choose lora, rslora, dora or none.")
    if config.train.gradient_checkpointing == "attention":
        message = "train.gradient_checkpointing=attention is for models that write."
        raise conflict("train.gradient_checkpointing", message, "choose none or layers.")
    written = {
        "template": config.template,
        "data.instruction": config.data.instruction,
        "prove.prompts": config.prove.prompts,
        "prove.documents": config.prove.documents,
        "experiments.prompt_distillation": config.experiments.prompt_distillation,
        "train.fsdp": config.train.fsdp,
    }
    for name in (name for name, value in written.items() if value):
        raise conflict(name, f"{name} is for models that write, and {config.model} is an encoder.", "leave it out.")
