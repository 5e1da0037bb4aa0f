"""Baselines without a language model."""

from __future__ import annotations

from tunewright.data import baselines
from tunewright.data.messages import Chat, Message


def chat(question: str, answer: str) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer)), "x:1")


def test_a_classical_classifier_learns_words_and_keeps_to_its_folds() -> None:
    rows = [
        chat(f"{'good fine' if i % 2 else 'bad awful'} thing number {i}", "plus" if i % 2 else "minus")
        for i in range(60)
    ]
    predict = baselines.tfidf(rows, ("minus", "plus"))
    probs = predict([chat("a fine and good one", ""), chat("an awful one", "")])
    assert probs[0]["plus"] > 0.8
    assert probs[1]["minus"] > 0.8
    assert baselines.constant(rows, ("minus", "plus"))(rows[:1]) == [{"minus": 0.5, "plus": 0.5}]
    # Every row has a copy with the other label: trained on the copy, the prediction is wrong; trained on neither, it
    # is random.
    texts = [f"text {i // 2} " * 3 for i in range(80)]
    p, _ = baselines.out_of_fold(texts, ["a" if i % 2 else "b" for i in range(80)], [i // 2 for i in range(80)])
    assert abs(p - 0.5).max() < 0.2


def test_texts_without_words_can_be_classified() -> None:
    texts = ["😀" * (i % 7 + 1) + "!" * (i // 7) if i % 2 else "🎉 ?" + "." * i for i in range(80)]
    p_RL, names = baselines.out_of_fold(texts, ["yes" if i % 2 else "no" for i in range(80)], range(80))
    assert (p_RL.argmax(1) == [names.index("yes" if i % 2 else "no") for i in range(80)]).mean() > 0.9
