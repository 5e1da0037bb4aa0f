"""The rollouts of a run: what `train.rollouts` needs, from its config, data and model."""

from __future__ import annotations

from pathlib import Path

from tunewright.core.config import REWARDED, SamplerConfig
from tunewright.core.records import AdapterNote
from tunewright.data.endpoints import token_sampler
from tunewright.data.endpoints.openai_endpoint import Endpoint, api_key
from tunewright.export import portable
from tunewright.model import adapters
from tunewright.model.decoding.outside import Outside
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.answers import Answers
from tunewright.train.rollouts import Rollouts

CONCURRENT = 64  # requests: the server batches them


def of(answers: Answers, model: LanguageModel, sampler: SamplerConfig | None = None) -> Rollouts | None:
    """None for methods that learn from rows alone. ``model``: as it is before training. Answers are as long, and end
    as, those of the verdict's arms. ``sampler``: the server that draws the samples of training, if its address is set.
    Raises ROLLOUT_FAILED if it cannot be asked."""
    if answers.plan.method not in REWARDED:
        return None
    run, data, decoding = answers.run, answers.data, answers.answering(model).decoding
    template, warn = answers.inputs.template, answers.console.warn
    start = None
    if answers.plan.options.kl_weight and answers.plan.adapter.start is not None:
        start = {name: t.detach().clone() for name, t in adapters.update_tensors(model.module).items()}
    folder, by = run.path / "rollouts", None
    if sampler is not None and sampler.url:
        by = _outside(answers, sampler, folder)
    return Rollouts(template, data.examples, data.task, decoding, folder, warn, start, by)


def _outside(answers: Answers, sampler: SamplerConfig, folder: Path) -> Outside:
    plan, facts, key = answers.plan, answers.inputs.facts, api_key(sampler.url, sampler.api_key_env)
    fix = "start the server, or check reward.sampler; then the same command continues."
    endpoint = Endpoint(sampler.url.rstrip("/"), "", key, CONCURRENT, fix)
    named = token_sampler.named(endpoint, token_sampler.base_of(endpoint))
    note = AdapterNote(
        base=portable.base_name(facts.name),
        base_sha256=facts.sha256,
        template_sha256=answers.inputs.template.sha256,
        run=answers.run.name,
        trained_as=plan.adapter.kind,
        files={},
    )
    return Outside(named, plan.adapter, note, folder)
