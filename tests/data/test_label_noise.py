"""Label noise: planted wrong labels are flagged, and their number is estimated."""

from __future__ import annotations

import numpy as np
import pytest

from tunewright.data import label_noise


def test_planted_noise_is_flagged_if_words_predict_the_label() -> None:
    rng = np.random.default_rng(0)
    texts, labels, wrong = [], [], set()
    for i in range(400):
        label = "ab"[i % 2]
        text = " ".join(rng.choice([f"{label}{k}" for k in range(8)] + ["x", "y", "z"], 9))
        if rng.random() < 0.15:
            wrong.add(i)
            label = "ba"[i % 2]
        texts.append(text)
        labels.append(label)
    noise = label_noise.find(texts, labels, list(range(400)), list(range(400)))
    assert noise is not None
    suspects = {s.row for s in noise.suspects}
    assert len(suspects & wrong) / len(suspects) > 0.9
    assert len(suspects & wrong) / len(wrong) > 0.8
    assert noise.interval[0] <= len(wrong) / 400 <= noise.interval[1]
    assert abs(noise.expected - len(suspects & wrong)) < 8
    assert label_noise.find(texts[:40], labels[:40], list(range(40)), list(range(40))) is None
    assert (
        label_noise.find(texts, list(rng.permutation(labels)), list(range(400)), list(range(400))) is None
    )  # no better than chance


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.15, 0.3])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_a_weak_classifier_is_distinguished_from_wrong_labels(rate: float, sharpness: float) -> None:
    """With hard rows, three labels, and an over- or under-confident model, the noise is still estimated, as many
    flagged labels are wrong as predicted, and clean labels are not flagged."""
    held, rates, expected, true, count = 0, [], 0.0, 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(600, 3)) * 1.5
        z[np.arange(600), rng.integers(0, 3, 600)] += 2
        p_RL = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        right = np.array([rng.choice(3, p=p) for p in p_RL])
        wrong = rng.random(600) < rate
        given = np.where(wrong, (right + rng.integers(1, 3, 600)) % 3, right)
        noise = label_noise.estimate(
            label_noise.tempered(p_RL, 1 / sharpness), "abc", ["abc"[i] for i in given], range(600)
        )
        assert noise.accuracy < 0.85
        rates.append(noise.rate)
        held += noise.interval[0] - 1e-9 <= rate <= noise.interval[1] + 1e-9
        expected += noise.expected
        true += sum(wrong[s.row] for s in noise.suspects)
        count += len(noise.suspects)
    assert held >= 17
    assert abs(np.mean(rates) - rate) < 0.03
    if rate:
        assert abs(true - expected) < 0.15 * count  # slightly optimistic where few labels are wrong
    else:
        assert count < 0.005 * 20 * 600
