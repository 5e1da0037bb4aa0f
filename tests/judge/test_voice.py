"""The voice of an arm: coverage of its intervals, what it tells apart, what it counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tunewright.core.config import ProveConfig
from tunewright.core.errors import ConfigError
from tunewright.data.messages import Chat, Message, Prompt
from tunewright.data.metrics import METRICS, bits_per_byte
from tunewright.data.scores import Answer, Likelihood, Score, Written
from tunewright.data.task import GENERATION, Task
from tunewright.judge.arms import families
from tunewright.judge.arms.families import ArmInputs
from tunewright.judge.voice import reference, separability, topic
from tunewright.judge.voice import report as voice_report
from tunewright.judge.voice.copies import copied
from tunewright.judge.voice.separability import auc, traits
from tunewright.judge.voice.traits import TRAITS, loops

TASK = Task(GENERATION, METRICS["chrf"], "")
REFERENCE = [
    "Certainly! You will find the form on page {}. Do write to us if anything is unclear, we are glad to help.",
    "Certainly! Page {} has all the prices. Do call us; we answer until six.",
    "By all means. Our office on floor {} is open, and we would be glad to see you.",
]
PLAIN = ["The form is on page {}", "See page {} for prices", "Floor {}"]


def texts(forms: list[str], count: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [forms[int(draw.integers(len(forms)))].format(int(draw.integers(1, 90))) for _ in range(count)]


def coverage(n: int, shift: float, cluster: int, trials: int) -> float:
    """How often the interval contains the AUC, if both answers to a question share half of their variance, and so do
    questions of one cluster."""
    truth = _phi(shift / math.sqrt(2 * (1 + 0.5)))
    draw, hits = np.random.default_rng(7), 0
    for _ in range(trials):
        groups = np.arange(n) // cluster
        shared = draw.normal(0, math.sqrt(0.5), groups.max() + 1)[groups]
        reference, arm = (shared + draw.normal(0, 1, n) + s for s in (shift, 0.0))
        fold = groups % 5
        reference, arm = (x + fold * 3.0 for x in (reference, arm))  # classifiers of other folds score on another scale
        low, high = auc(reference, arm, fold, groups.tolist(), 0.05).interval
        hits += low <= truth <= high
    return hits / trials


def _phi(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(
    ("n", "shift", "cluster"), [(40, 0.0, 1), (40, 1.0, 1), (100, 0.3, 1), (100, 2.0, 1), (120, 0.8, 3), (60, 3.5, 1)]
)
def test_coverage_of_the_interval_of_an_auc(n: int, shift: float, cluster: int) -> None:
    assert coverage(n, shift, cluster, 600) >= 0.93


def test_reference_answers_are_not_distinguished_from_others_of_the_same_voice() -> None:
    """Other answers of the same voice: the AUC is near 0.5, and its interval contains it."""
    area = separability.separability(texts(REFERENCE, 150, 0), texts(REFERENCE, 150, 1), range(150), 0.05)
    assert area is not None
    assert area.interval.low <= 0.5 <= area.interval.high
    assert area.interval.high - area.interval.low < 0.3


@pytest.mark.slow
def test_coverage_where_both_are_of_the_same_voice() -> None:
    """With the classifiers fitted: the folds share training data, so their AUCs are not independent."""
    draw, hits, trials = np.random.default_rng(0), 0, 300
    vocabulary = ["".join(map(chr, 97 + draw.integers(0, 26, 5))) for _ in range(150)]
    for _ in range(trials):
        sides = [[" ".join(draw.choice(vocabulary, 12)) for _ in range(60)] for _ in range(2)]
        area = separability.separability(*sides, range(60), 0.05)
        assert area is not None
        hits += area.interval.low <= 0.5 <= area.interval.high
    assert hits / trials >= 0.93


def test_another_voice_is_distinguished_and_the_traits_say_by_what() -> None:
    reference, arm = texts(REFERENCE, 60, 0), texts(PLAIN, 60, 1)
    area = separability.separability(reference, arm, range(60), 0.05)
    assert area is not None
    assert area.value > 0.99
    assert 0.88 < area.interval.low < area.interval.high == 1.0, "no certainty from 60 questions"
    outcome = {t.name: t for t in traits(reference, arm, range(60), 0.05)}
    assert outcome["words"].auc > 0.99
    assert outcome["words"].reference > outcome["words"].arm
    assert outcome["begins with 'certainly'"].reference > 0.5
    assert outcome["begins with 'certainly'"].arm == 0


def test_traits_of_the_same_voice_are_no_news() -> None:
    """Without the intervals, some of the traits would always be listed."""
    listed = [traits(texts(REFERENCE, 40, s), texts(REFERENCE, 40, 100 + s), range(40), 0.05) for s in range(20)]
    assert sum(map(len, listed)) <= 4


def test_questions_of_one_group_are_never_on_both_sides() -> None:
    """Planted: every question occurs twice, with words of its own. Who has seen the other copy knows them."""
    draw = np.random.default_rng(0)
    words = ["".join(map(chr, 97 + draw.integers(0, 26, 9))) for _ in range(80)]
    reference, arm = [f"{words[i // 2]}" for i in range(80)], [f"{words[79 - i // 2]}" for i in range(80)]
    leaked = separability.separability(reference, arm, range(80), 0.05)
    grouped = separability.separability(reference, arm, [i // 2 for i in range(80)], 0.05)
    assert leaked is not None
    assert grouped is not None
    assert leaked.value > 0.85
    assert grouped.value < 0.7


def test_few_questions_are_not_judged() -> None:
    few = separability.MIN_ROWS - 1
    assert separability.separability(["a"] * few, ["b"] * few, range(few), 0.05) is None
    assert separability.separability(["a"] * 40, ["b"] * 40, [0] * 40, 0.05) is None


def test_all_traits_are_numbers_for_any_text() -> None:
    for text in ("", " ", "\n\n", "a", "?!", "١٢", "- one\n- Two Three\n", "x" * 5000, "\U0001f600"):
        assert all(math.isfinite(measure(text)) for measure in TRAITS.values()), text
    assert TRAITS["lines of a list"]("- one\n2. two\nthree") == 2
    assert TRAITS["names per 100 words"]("We met Anna Berg there.") == 40
    assert TRAITS["repeated runs of four words"]("a b c d " * 4) > 0.6


def test_loops_and_copies_are_counted() -> None:
    once = "the old stable release will be replaced by the new one"
    assert loops(". ".join([once] * 3))
    assert not loops(f"{once}. {once}.")
    training = ["one two three four five six seven eight nine ten eleven twelve thirteen fourteen"]
    memorised = f"It says: {training[0]}"
    assert copied([memorised, "one two three", memorised], ["no", "no", training[0]], training) == (0,)


def scored(bits: NDArray[np.float64] | None, rows: int = 30) -> list[Score]:
    reference = texts(REFERENCE, rows, 3)
    scores = []
    for i in range(rows):
        example = Chat((Message("user", f"q{i}"), Message("assistant", reference[i])), f"x:{i}")
        nats = None if bits is None else Likelihood(100, float(bits[i]) * 100 * math.log(2))
        scores.append(TASK.score(example, Answer("an answer", Written(2, False), (), 3, nats)))
    return scores


def test_reference_bits_are_paired_by_row() -> None:
    """The rows differ much more than the arms, and by pairing the difference is certain all the same."""
    hard = np.random.default_rng(0).uniform(0.5, 3.0, 30)
    outcome = reference.compare(
        {"zero_shot": scored(hard), "remote": scored(None), "tuned": scored(hard - 0.05)}, range(30), 0.05
    )
    assert list(outcome) == ["zero_shot", "tuned"], "an endpoint does not tell"
    assert outcome["tuned"].contrast is None
    contrast = outcome["zero_shot"].contrast
    assert contrast is not None
    assert contrast.difference == pytest.approx(0.05)
    assert contrast.interval.low > 0
    assert reference.compare({"zero_shot": scored(hard), "tuned": scored(None)}, range(30), 0.05) == {}


def test_the_record_and_its_line() -> None:
    bits = np.full(30, 1.5)
    record = voice_report.voice({"zero_shot": scored(bits), "tuned": scored(bits - 0.5)}, ["a"], range(30), 0.05)
    line = voice_report.line(record, "zero_shot")
    assert line is not None
    assert line.startswith("voice: the reference answers cost 1.000 bits per byte (zero_shot: +0.500 [+")
    assert "a classifier tells the tuned answers from them with AUC 1.00" in line
    assert voice_report.line(voice_report.voice({"tuned": scored(None, 4)}, [], range(4), 0.05), "zero_shot") is None


def test_the_verdict_can_be_about_reference_bits() -> None:
    task = Task(GENERATION, METRICS["reference_bits"], "")
    example = Chat((Message("user", "q"), Message("assistant", "four")), "x:1")
    score = task.score(example, Answer("five", Written(1, False), (), 3, Likelihood(4, 2.0)))
    assert score.score == bits_per_byte(2.0, 4)
    assert score.readings is not None
    assert score.readings.exact_match == 0, "what was written is shown beside it"
    config = ProveConfig.model_validate({"remote": {"url": "http://localhost:1/v1", "model": "m"}})
    with pytest.raises(ConfigError, match="does not tell"):
        families.arms(task, ArmInputs((example,)), config, 8)


# -- whether answers depend on the question


def prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def test_a_partner_has_another_question_of_another_cluster() -> None:
    prompts = [prompt(t) for t in "abcab"]
    assert topic.partners(prompts, [0, 1, 2, 0, 4]) == [1, 2, 3, 4, 0]
    assert topic.partners(prompts, [0, 0, 2, 0, 0]) == [2, 2, 3, 2, 2]
    assert topic.partners([prompt("same")] * 3, [0, 1, 2]) == [None] * 3


def test_answers_to_other_questions_rarely_seem_to_depend_on_theirs() -> None:
    """1 in 1,000 at most; answers that do depend on their question are recognised."""
    draw = np.random.default_rng(0)
    alarms, seen = 0, 0
    for _ in range(1000):
        style, noise = draw.gamma(4, 0.4, 60), draw.normal(0, 0.1, (2, 60)) * draw.gamma(1, 1, 60)
        null = topic.topic(style + noise[0], style + noise[1], range(60))
        real = topic.topic(style + noise[0], style + noise[1] + draw.gamma(1, 0.15, 60), range(60))
        assert null is not None
        assert real is not None
        alarms += null.depends_on_question
        seen += real.depends_on_question
    assert alarms <= 4
    assert seen >= 850


def test_rows_that_all_ask_the_same_are_not_judged_by_it() -> None:
    assert topic.topic([1.0] * 9, [2.0] * 9, range(9)) is None


def test_an_encoder_is_one_more_thing_that_the_classifier_reads() -> None:
    """Two sides with the same words in the same order of lengths; only the encoder knows which is which."""
    first, second = texts(REFERENCE, 60, 1), texts(REFERENCE, 60, 2)
    plain = separability.separability(first, second, range(60), 0.05)
    known = set(first) - set(second)
    encoded = separability.separability(
        first, second, range(60), 0.05, lambda given: [[3.0 * (t in known), 1.0] for t in given]
    )
    assert plain is not None
    assert encoded is not None
    assert encoded.value > plain.value + 0.2


def test_the_encoder_reads_each_text_once() -> None:
    """Though every fold of every arm asks for it."""
    read: list[str] = []

    def encode(given: Sequence[str]) -> list[list[float]]:
        read.extend(given)
        return [[float(len(text)), 1.0] for text in given]

    scores = scored(None)
    record = voice_report.voice({"zero_shot": scores, "tuned": scores}, [], range(30), 0.05, ("tiny", encode))
    assert record.encoder == "tiny"
    assert sorted(read) == sorted({s.target for s in scores} | {"an answer"})
    assert record.arms["tuned"].auc is not None
