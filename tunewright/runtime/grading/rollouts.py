"""The rollouts of a run: what `train.sampling.rollouts` needs, from its config, data and model."""

from __future__ import annotations

from pathlib import Path

from tunewright.core.config import REWARDED, Config, SamplerConfig
from tunewright.core.errors import ConfigError
from tunewright.core.records import AdapterNote
from tunewright.data.endpoints import token_sampler
from tunewright.data.endpoints.openai_endpoint import Endpoint, api_key
from tunewright.export import portable
from tunewright.model import adapters
from tunewright.model.adapting import stored
from tunewright.model.decoding.outside import Outside
from tunewright.model.decoding.stack import supports
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.answers import Answers
from tunewright.train.sampling.rollouts import Rollouts

CONCURRENT = 64  # requests: the server batches them


def require_sampler(config: Config) -> None:
    """Asks the server that is to draw the samples, if its address is set, before anything is computed. Raises
    ROLLOUT_FAILED if it cannot be asked, CONFIG_CONFLICT if it cannot load the adapter that training continues from,
    ADAPTER_* if that cannot be read."""
    if not config.reward.sampler.url:
        return
    if config.adapter.start is not None:
        given = stored.read(Path(config.adapter.start)).config
        if not (supports(given) and given.uniform):
            what = given.kind if given.uniform else "with several ranks or alphas"
            message = f"this adapter is {what}; vLLM loads LoRA adapters of one rank and alpha, and no others."
            fix = "continue from another adapter, or remove reward.sampler."
            raise ConfigError("CONFIG_CONFLICT", message, where="adapter.start", fix=fix)
    _named(config.reward.sampler)


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
    plan, facts = answers.plan, answers.inputs.facts
    note = AdapterNote(
        base=portable.base_name(facts.name),
        base_sha256=facts.sha256,
        template_sha256=answers.inputs.template.sha256,
        run=answers.run.name,
        trained_as=plan.adapter.kind,
        files={},
    )
    return Outside(_named(sampler), plan.adapter, note, folder)


def _named(sampler: SamplerConfig) -> Endpoint:
    """The server, with the name of its base. Raises ROLLOUT_FAILED."""
    fix = "start the server, or check reward.sampler; then the same command continues."
    key = api_key(sampler.url, sampler.api_key_env)
    endpoint = Endpoint(sampler.url.rstrip("/"), "", key, CONCURRENT, fix)
    return token_sampler.named(endpoint, token_sampler.base_of(endpoint))
