"""The teacher of a distillation: another model with the same vocabulary, which reads the rows once, before training. Of
it, only the output head stays in memory: with the hidden states of the rows, it gives the teacher's probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tunewright.core.config import DistillConfig, Teacher
from tunewright.core.errors import ModelError, RunError
from tunewright.core.run_folder import Run
from tunewright.model import loading, model_files
from tunewright.model.facts import Facts, read_facts
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.packing import Layout
from tunewright.tokens.sequences import TokenSequence
from tunewright.tokens.template import Template, load_template

WHERE = "distill.teacher"
SAMPLED = (
    "use a teacher of the same family; or let this one write answers, and train on these: `tunewright serve`, then "
    "`tunewright synthesize DATA --url ... --out FILE`."
)


def described(
    settings: DistillConfig,
    student: Facts,
    template: Template,
    sequences: Sequence[TokenSequence],
    size: int,
    written: int = 0,
) -> Teacher:
    """The teacher that a config names, for rows that ``student`` learns from; nothing but its files' facts is loaded.
    ``size``: bytes of a number; ``written``: tokens of the longest prompt and an answer, if it is to write answers, or
    to read those of the student.
    Raises TEACHER_MISMATCH, and what `read_facts` raises."""
    facts = read_facts(_model_of(settings.teacher))
    own, other = template.tokenizer.get_vocab(), load_template(Path(facts.path)).tokenizer.get_vocab()
    if own != other:
        raise _mismatch(f"its vocabulary is not that of the model: {_difference(own, other)}", SAMPLED)
    longest, highest = (max(map(of, sequences)) for of in (lambda s: len(s.ids), lambda s: max(s.ids)))
    if highest >= facts.vocabulary:
        raise _mismatch(f"it has {facts.vocabulary} embeddings, and a row contains token {highest}", SAMPLED)
    if longest > facts.context:
        fix = f"set train.max_length={facts.context} data.too_long=drop, or use another teacher."
        raise _mismatch(f"its context is {facts.context} tokens, and the longest row has {longest}", fix)
    if written > facts.context:
        fix = f"lower prove.max_new_tokens by {written - facts.context}"
        fix += "." if settings.on_policy else ", or set prove.evidence=plain, with which it is not asked for answers."
        raise _mismatch(f"its context is {facts.context} tokens, and prompt and answer may have {written}", fix)
    vocabulary, supervised = min(student.vocabulary, facts.vocabulary), sum(s.supervised for s in sequences)
    weights = facts.parameters if settings.on_policy else 0  # which read what the student writes
    return Teacher(
        name=settings.teacher,
        path=facts.path,
        sha256=facts.sha256,
        parameters=facts.parameters,
        hidden=facts.hidden,
        vocabulary=vocabulary,
        packable=facts.packable,
        shareable=facts.shareable,
        window=facts.window,
        gigabytes=round(1e-9 * size * (facts.hidden * (supervised + facts.vocabulary) + weights), 3),
        settings=settings,
    )


def load(teacher: Teacher, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """In eval mode, as the plan has it. Raises RESUME_MISMATCH if its files have changed, MODEL_UNSUPPORTED if its
    logits are more than its head's product with hidden states."""
    path = Path(teacher.path)
    if not path.is_dir() or model_files.digest(path) != teacher.sha256:
        message = f"the teacher {teacher.name} has changed since the run was planned."
        raise RunError("RESUME_MISMATCH", message, where=teacher.path, fix="restore it, or start a new run.")
    model = loading.load(path, dtype, str(device))
    if not model.plain_head:
        message = f"the logits of {teacher.name} are scaled, capped or biased, which distillation does not support yet."
        raise ModelError("MODEL_UNSUPPORTED", message, where=WHERE, fix=SAMPLED)
    return model


def head(teacher: Teacher, dtype: torch.dtype, device: torch.device) -> Tensor:
    """head_VE: its output head alone."""
    return load(teacher, dtype, device).head_VD.detach().clone()


def layout(teacher: Teacher) -> Layout:
    """The fastest in which its rows do not see one another."""
    return "padded" if not teacher.packable else "shared" if teacher.shareable else "packed"


def _model_of(name: str) -> str:
    """The name of a model, or the merged export of the run that is named. Raises MODEL_NOT_FOUND."""
    run = Run(Path(name).expanduser())
    if not run.plan.is_file():
        return name
    if not (merged := run.path / "merged").is_dir():
        fix = f"`tunewright export {name} --to merged`."
        raise ModelError("MODEL_NOT_FOUND", f"the run {name} has no merged export.", where=WHERE, fix=fix)
    return str(merged)


def _difference(own: dict[str, int], other: dict[str, int]) -> str:
    if len(own) != len(other):
        return f"it has {len(other)} tokens, the model {len(own)}"
    token = min((t for t in own if other.get(t) != own[t]), key=own.__getitem__)
    return f"token {own[token]} of the model, {token!r}, has another number in the teacher"


def _mismatch(what: str, fix: str) -> ModelError:
    return ModelError("TEACHER_MISMATCH", f"the teacher does not fit: {what}.", where=WHERE, fix=fix)
