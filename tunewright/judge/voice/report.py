"""The voice of every arm on the test rows, as a record. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tunewright.core.records import ArmVoice, AucValue, ReferenceContrast, TraitValue, Voice
from tunewright.data.scores import Score, Written
from tunewright.data.text import without_thoughts
from tunewright.judge.voice import reference
from tunewright.judge.voice.copies import copied
from tunewright.judge.voice.reference import ReferenceBits
from tunewright.judge.voice.separability import Encode, separability, traits
from tunewright.judge.voice.traits import loops


def voice(
    scores_of: Mapping[str, Sequence[Score]],
    training: Sequence[str],
    clusters: Sequence[int],
    alpha: float,
    encoder: tuple[str, Encode] | None = None,
) -> Voice:
    """The voice of each arm that writes answers. ``training``: the training answers. ``encoder``: its name, and its
    vectors of texts."""
    bits = reference.compare(scores_of, clusters, alpha)
    name, encode = encoder or (None, None)
    written = {f: scores for f, scores in scores_of.items() if isinstance(scores[0].answer.output, Written)}
    if encode is not None:
        encode = _read_once(encode, [s for scores in written.values() for s in scores])
    arms = {
        family: _arm(scores, training, clusters, alpha, bits.get(family), encode) for family, scores in written.items()
    }
    return Voice(rows=len(clusters), encoder=name, arms=arms)


def _read_once(encode: Encode, scores: Sequence[Score]) -> Encode:
    """``encode`` for the texts of these scores: an encoder is slow, and the folds of every arm ask for each again."""
    texts = list(dict.fromkeys(text for s in scores for text in (s.target, without_thoughts(s.answer.text))))
    vector_of = dict(zip(texts, np.asarray(encode(texts)), strict=True))
    return lambda asked: np.stack([vector_of[text] for text in asked])


def _arm(
    scores: Sequence[Score],
    training: Sequence[str],
    clusters: Sequence[int],
    alpha: float,
    bits: ReferenceBits | None,
    encode: Encode | None,
) -> ArmVoice:
    targets, answers = [s.target for s in scores], [without_thoughts(s.answer.text) for s in scores]
    area = separability(targets, answers, clusters, alpha, encode)
    contrast = bits.contrast if bits else None
    return ArmVoice(
        reference_bits=bits.bits if bits else None,
        extra_bits=ReferenceContrast(difference=contrast.difference, interval=contrast.interval) if contrast else None,
        auc=AucValue(value=area.value, interval=area.interval) if area else None,
        traits=tuple(
            TraitValue(name=t.name, reference=t.reference, arm=t.arm, auc=t.auc)
            for t in traits(targets, answers, clusters, alpha)
        ),
        copied=len(copied(answers, targets, training)),
        loops=sum(map(loops, answers)),
        cut=sum(isinstance(s.answer.output, Written) and s.answer.output.cut for s in scores),
    )


def line(voice: Voice, comparator: str) -> str | None:
    """The voice of the tuned arm in one line; None if nothing about it was measured."""
    tuned, other = voice.arms["tuned"], voice.arms.get(comparator)
    parts = []
    if tuned.reference_bits is not None:
        extra = other and other.extra_bits
        more = f" ({comparator}: {extra.difference:+.3f} {extra.interval:+.3f})" if extra else ""
        parts.append(f"the reference answers cost {tuned.reference_bits:.3f} bits per byte{more}")
    if tuned.auc is not None:
        area = f"AUC {tuned.auc.value:.2f} {tuned.auc.interval:.3f}"
        parts.append(f"a classifier tells the tuned answers from them with {area}")
    return f"voice: {'; '.join(parts)}" if parts else None
