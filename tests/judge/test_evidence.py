"""Arms, calibration, corpus metrics, forgetting: each against an oracle, a brute-force computation or a property."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build import byte_tokenizer, tiny_lm

from tunewright.core.config import AdapterConfig, ProveConfig
from tunewright.core.errors import RunError
from tunewright.data import baselines, label_noise, metrics, split
from tunewright.data.examples import Chat, Message, Text
from tunewright.data.metrics import Task
from tunewright.judge import calibration, corpus, evaluate, extrapolation, probes
from tunewright.judge.arms import bm25, embedding_index, families, openai_endpoint
from tunewright.judge.arms.openai_endpoint import Endpoint
from tunewright.model import adapters, kl
from tunewright.stages import cost, forget, learning_curve, prove
from tunewright.tokens.sequences import Rendered


def chat(asked: str, answer: str) -> Chat:
    return Chat((Message("user", asked), Message("assistant", answer)), "x:1")


# -- calibration


def draws(rows: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shares that are exactly right, raised to a power: over-confident above 1, under-confident below."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet([1.0, 1.0, 1.0], rows)
    right = np.array([rng.choice(3, p=p) for p in true])
    bent = true**sharpness
    return bent / bent.sum(1, keepdims=True), right


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_over_and_under_confidence(sharpness: float) -> None:
    share, right = draws(4000, sharpness)
    assert calibration.temperature(share, right) == pytest.approx(sharpness, rel=0.1)
    mended = label_noise.tempered(share, calibration.temperature(share, right))
    assert calibration.log_loss(mended, right) <= calibration.log_loss(share, right) + 1e-9
    assert (mended.argmax(1) == share.argmax(1)).all()


def test_calibration_error_and_its_interval() -> None:
    share, right = draws(4000, 1.0)
    sure, hit = share.max(1), share.argmax(1) == right
    assert calibration.calibration_error(sure, hit) < 0.03
    low, high = calibration.error_interval(sure, hit)
    assert low < 0.03
    bent, right = draws(4000, 3.0)
    assert calibration.calibration_error(bent.max(1), bent.argmax(1) == right) > high
    for n in (0, 1):
        assert np.isfinite(calibration.calibration_error(sure[:n], hit[:n]))
        assert calibration.error_interval(sure[:n], hit[:n]) == (0.0, 1.0)


@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_interval_of_the_calibration_error_covers(rows: int, sharpness: float) -> None:
    """Of a calibrated judge as well, of which the binned error shows several times the truth."""
    share, right = draws(200_000, sharpness)
    sure, hit = share.max(1), (share.argmax(1) == right).astype(float)
    truth = calibration.calibration_error(sure, hit, bins=200)
    draw = np.random.default_rng(rows)
    covered = 0
    for seed in range(300):
        pick = draw.integers(0, len(sure), rows)
        low, high = calibration.error_interval(sure[pick], hit[pick], resamples=100, seed=seed)
        covered += low <= truth <= high
    assert covered / 300 >= 0.93


def test_risk_coverage_and_the_hand_over() -> None:
    share, right = draws(2000, 1.0)
    sure, hit = share.max(1), share.argmax(1) == right
    curve = calibration.coverage_curve(sure, hit)
    assert [c for _, c, _ in curve] == sorted(c for _, c, _ in curve)
    assert curve[-1][1] == 1.0
    assert curve[-1][2] == pytest.approx(hit.mean())
    threshold = calibration.handover(sure, hit, 0.9)
    assert threshold is not None
    assert hit[sure >= threshold].mean() >= 0.9
    assert calibration.handover(sure, np.zeros(2000), 0.9) is None
    rows = [dict(zip("abc", map(float, p), strict=True)) for p in share]
    targets = ["abc"[i] for i in right]
    told = calibration.report("abc", (rows[:1000], targets[:1000]), (rows[1000:], targets[1000:]), 0.9)
    assert told["temperature"] == pytest.approx(1.0, abs=0.15)
    assert told["handover"]["interval"][0] < told["handover"]["accuracy"] < told["handover"]["interval"][1]
    assert "handover" not in calibration.report("abc", ([], []), (rows[:5], targets[:5]), 0.9)


# -- corpus metrics


def test_corpus_metrics_are_those_of_others() -> None:
    from sacrebleu.metrics.chrf import CHRF
    from sklearn.metrics import f1_score

    said, wanted = ["the cat sat", "a dog", ""], ["the cat sat down", "a frog", "nothing here"]
    lines = [{"answer": a, "target": t} for a, t in zip(said, wanted, strict=True)]
    _, sums, metric = corpus.sums(Task("generation", "chrf", ""), lines)
    assert float(metric(sums.sum(0))) * 100 == pytest.approx(CHRF().corpus_score(said, [wanted]).score)

    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], (2, 60))
    lines = [{"answer": str(a), "target": str(t)} for a, t in labels.T]
    _, sums, metric = corpus.sums(Task("label", "accuracy", "", ("a", "b", "c")), lines)
    expected = f1_score(labels[1], labels[0], average="macro")
    assert float(metric(sums.sum(0))) == pytest.approx(expected)
    assert metrics.macro_f1([str(t) for t in labels[1]], [str(a) for a in labels[0]]) == pytest.approx(expected)

    fields = [{"fields": [2, 1, 0]}, {"fields": [0, 0, 3]}]
    _, sums, metric = corpus.sums(Task("json", "field_f1", ""), fields)
    assert float(metric(sums.sum(0))) == pytest.approx(2 * 2 / (2 * 2 + 1 + 3))


def test_a_corpus_comparison_says_what_it_cannot() -> None:
    task = Task("label", "accuracy", "", ("a", "b"))
    good = [{"answer": t, "target": t} for t in "ab" * 20]
    bad = [{"answer": "a", "target": t} for t in "ab" * 20]
    told = corpus.compare(task, good, bad, list(range(40)), 0.05)
    low, high = told["interval"]
    assert 0 < low < told["difference"] < high
    few = corpus.compare(task, good[:5], bad[:5], list(range(5)), 0.05)
    assert few["interval"] is None
    assert "fewer than" in few["note"]


# -- arms


def test_the_nearest_rows_are_near_and_never_the_row_itself() -> None:
    train = [
        chat(f"where is the {thing}?", thing) for thing in ("red house", "blue house", "green tree", "old river", "stone dog")
    ]
    near = bm25.nearest(train)
    shots = near.shots(chat("is the house red or blue?", ""), 2)
    assert {s.target for s in shots} == {"red house", "blue house"}
    assert train[0] not in near.shots(train[0], 4)
    assert len(near.shots(chat("zzz", ""), 3)) == 3  # no shared word: still an answer, in the order of the rows


def test_an_encoder_finds_what_means_the_same(tmp_path: Path) -> None:
    """A small random BERT: a text's nearest is itself, whatever it is padded with, and arms take it in place of words."""
    from transformers import AutoModel, BertConfig

    tokenizer = byte_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    AutoModel.from_config(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["a short one", "something rather longer than the others are", "zebra", "a short two"]
    found = embedding_index.indexer(tmp_path)(texts)
    assert [found.best(t, 1) for t in texts] == [[0], [1], [2], [3]]
    assert torch.allclose(found.vector_ND, torch.cat([found.encode([t]) for t in texts]), atol=1e-6)
    train = [chat(t, t.upper()) for t in texts]
    task = metrics.detect_task(train)
    arms = families.arms(task, train, ProveConfig(few_shot=[2]), [Text("zebra crossing", "d")], embedding_index.indexer(tmp_path))
    assert "zebra crossing" in families.prompt(arms["retrieval"][0], train[2])[-1].content
    assert len(families.prompt(arms["nearest"][0], train[2])) == 5


def test_passages_lose_nothing() -> None:
    text = "\n\n".join(f"Paragraph {i}. " + "It says this. " * (i * 9) for i in range(12)) + "\n\n" + "x" * 3000
    found = bm25.passages([Text(text, "d")], 400)
    assert "".join("".join(p.split()) for p in found) == "".join(text.split())
    assert max(map(len, found)) <= 401


def test_a_classical_classifier_learns_words_and_keeps_to_its_folds() -> None:
    rows = [chat(f"{'good fine' if i % 2 else 'bad awful'} thing number {i}", "plus" if i % 2 else "minus") for i in range(60)]
    says = baselines.tfidf(rows, ("minus", "plus"))
    shares = says([chat("a fine and good one", ""), chat("an awful one", "")])
    assert shares[0]["plus"] > 0.8
    assert shares[1]["minus"] > 0.8
    assert baselines.constant(rows, ("minus", "plus"))(rows[:1]) == [{"minus": 0.5, "plus": 0.5}]
    # Every row has a twin with the other label: whoever has seen the twin is wrong, whoever has seen neither is at chance.
    texts = [f"text {i // 2} " * 3 for i in range(80)]
    p, _ = baselines.out_of_fold(texts, ["a" if i % 2 else "b" for i in range(80)], [i // 2 for i in range(80)])
    assert abs(p - 0.5).max() < 0.2


def test_texts_without_a_word_are_judged_too() -> None:
    texts = ["😀" * (i % 7 + 1) + "!" * (i // 7) if i % 2 else "🎉 ?" + "." * i for i in range(80)]
    p_RL, names = baselines.out_of_fold(texts, ["yes" if i % 2 else "no" for i in range(80)], range(80))
    assert (p_RL.argmax(1) == [names.index("yes" if i % 2 else "no") for i in range(80)]).mean() > 0.9


def test_a_label_is_read_out_of_a_sentence() -> None:
    labels = ("spam", "not spam", "offer")
    assert metrics.read_label("It is an Offer!", labels) == "offer"
    assert metrics.read_label("This is not spam.", labels) == "not spam"
    assert metrics.read_label("spam or offer", labels) is None
    assert metrics.read_label("offering", labels) is None
    assert metrics.read_label("", labels) is None


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[Any]]]:
    """A real server that speaks chat completions; it is overloaded at every request's first try."""
    seen: list[Any] = []
    tried: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = body["messages"][-1]["content"]
            status = 200
            if asked == "secret" and self.headers.get("authorization") != "Bearer key":
                status = 401
            elif asked not in tried:
                tried.add(asked)
                status = 503
            seen.append(body)
            reply = {"choices": [{"message": {"content": asked.upper()}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
            raw = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    server.server_close()


def test_a_remote_arm(endpoint: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_endpoint.time, "sleep", lambda _: None)
    url, seen = endpoint
    found = openai_endpoint.answers(Endpoint(url, "m"), [[Message("user", x)] for x in ("one", "two", "three")], 7)
    assert [r.text for r in found] == ["ONE", "TWO", "THREE"]
    assert {body["max_tokens"] for body in seen} == {7}
    assert all(body["temperature"] == 0 for body in seen)
    with pytest.raises(RunError, match=r"REMOTE_FAILED.*401"):
        openai_endpoint.answers(Endpoint(url, "m"), [[Message("user", "secret")]], 7)
    with pytest.raises(RunError, match=r"REMOTE_FAILED"):
        openai_endpoint.answers(Endpoint("http://127.0.0.1:9/v1", "m"), [[Message("user", "x")]], 7)
    assert "key" not in repr(Endpoint(url, "m", "key")).replace("key=", "")


# -- scorers

PARIS = [
    "Paris",
    " paris ",
    "**Paris**",
    '"Paris".',
    "The answer is Paris.",
    "Answer: Paris",
    "$\\boxed{Paris}$",
    "```\nParis\n```",
]
OBJECT = '{"city": "Paris", "rivers": ["Seine", "Marne"]}'
OBJECTS = [
    OBJECT,
    '{"rivers": ["Marne", "Seine"], "city": "PARIS"}',
    f"```json\n{OBJECT}\n```",
    f"Here it is:\n{OBJECT}\nI hope this helps!",
]


@pytest.mark.parametrize("answer", PARIS)
def test_a_right_answer_is_right_however_it_is_dressed(answer: str) -> None:
    assert metrics.score_answer("exact_match", "Paris", answer) == 1.0


@pytest.mark.parametrize("answer", OBJECTS)
def test_a_right_object_is_right_however_it_is_dressed(answer: str) -> None:
    assert metrics.score_answer("field_f1", OBJECT, answer) == 1.0
    assert metrics.score_answer("exact_match", OBJECT, answer) == 1.0
    assert metrics.strict_match(OBJECT, answer) == float(answer.startswith("{"))  # how it is dressed is told beside it


@pytest.mark.parametrize(
    ("metric", "target"),
    [("exact_match", "Paris"), ("exact_match", OBJECT), ("field_f1", OBJECT), ("chrf", "It is Paris on the Seine.")],
)
def test_silence_refusal_and_echo_score_about_nothing(metric: str, target: str) -> None:
    for lazy in ("", "I'm sorry, but I can't help with that.", "Which city lies there?", "{}", "null"):
        assert metrics.score_answer(metric, target, lazy) < 0.2, lazy


def test_a_broken_generator_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    template = type("T", (), {"eos": 0})()
    monkeypatch.setattr(evaluate.rendering, "for_generation", lambda *_: [1, 2])
    monkeypatch.setattr(evaluate, "greedy", lambda *_: [])  # answers nothing, and says nothing of it
    rows = [chat("q", "a"), chat("r", "b")]
    with pytest.raises(ValueError, match="shorter"):
        evaluate.judge(tiny_lm(), families.Arm("x", ""), rows, Task("generation", "exact_match", ""), template, None, None)  # type: ignore[arg-type]


# -- probes


def perfect(order: probes.Instruction) -> str:
    noun = order.wanted
    return {
        "capitals": noun,
        "repeat": f"{noun}.",
        "sum": f"{noun}.",
        "one word": "Thing.",
        "has both": f"The {' and the '.join(noun.split())} are here.",
        "ends": "It is a thing. That is all.",
        "yes or no": "No.",
        "two hyphens": "- one\n- two",
        "begins": "Certainly, it is a thing.",
        "json": json.dumps({"thing": noun}),
    }[order.check]


def test_every_order_can_be_followed_and_is_not_by_silence_echo_or_refusal() -> None:
    orders = probes.instructions()
    assert len(orders) == len({o.text for o in orders}) == 300
    assert all(probes.followed(o, perfect(o)) for o in orders)
    for lazy in (lambda o: "", lambda o: o.text, lambda o: "I'm sorry, but I can't help with that."):
        assert sum(probes.followed(o, lazy(o)) for o in orders) <= 3


def test_knowledge_has_one_right_choice() -> None:
    asked = probes.knowledge()
    assert len(asked) >= 300
    for q in asked:
        assert len(set(q.choices)) == 4, q
        assert 0 <= q.answer < 4
    assert 0.2 < np.mean([q.answer == 0 for q in asked]) < 0.3  # the right one stands anywhere


def test_refusals() -> None:
    assert sum(bad for _, bad in probes.refusals()) == len(probes.refusals()) / 2 == 30
    assert probes.refuses("I'm sorry, but I can’t help with that.")
    assert not probes.refuses("Sure. First, take a lock and a key.")


def test_generic_text_that_was_trained_on_is_left_out() -> None:
    everything = probes.generic()
    assert {t.where for t in everything[:4]} == {"satire", "computing culture", "law", "technical"}
    left = probes.generic([everything[0].text])
    assert len(left) == len(everything) - 1
    assert everything[0] not in left


# -- forgetting


def rows_of(seed: int, count: int = 5) -> list[Rendered]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 20, count)
    return [Rendered(tuple(map(int, rng.integers(3, 60, n))), (0.0, 0.0, *[1.0] * (n - 2)), i) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_divergence_is_the_kl_over_the_whole_vocabulary(layout: Any) -> None:
    model = tiny_lm("llama")
    adapters.attach(model.module, AdapterConfig(rank=4), 0)
    for p in adapters.trainable(model.module).values():
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    rows = rows_of(1)
    found = kl.measure(model, rows, [0.0, 0.5, 1.0], layout)
    assert (found.kl_SR[0] == 0).all()
    assert (found.nats_SR[0] == found.base_nats_R).all()  # at scale 0 the model is the base, bit for bit
    assert (found.kl_SR[2] > found.kl_SR[1]).all()
    assert (found.kl_SR[1] > 0).all()
    row, ids = rows[0], torch.tensor([rows[0].ids])
    with torch.inference_mode():
        with adapters.off(model.module):
            before = model.module(ids).logits[0, :-1].float().log_softmax(-1)
        after = model.module(ids).logits[0, :-1].float().log_softmax(-1)
    at = [t - 1 for t in range(len(row.ids)) if row.weights[t]]
    expected = (before.exp() * (before - after)).sum(-1)[at].sum()
    assert found.kl_SR[2, 0] == pytest.approx(float(expected), rel=1e-4)
    assert found.tokens_R[0] == len(at)


def test_the_smallest_scale_within_one_standard_error_is_chosen() -> None:
    clear = {0.25: [0.0] * 20, 0.5: [0.5] * 20, 1.0: [1.0] * 20}
    assert forget.choose(clear) == 1.0
    assert forget.choose({s: [1.0] * 20 for s in (0.25, 0.5, 1.0)}) == 0.25
    near = {0.25: [0.0] * 20, 0.5: [1.0] * 19 + [0.0], 1.0: [1.0] * 20}
    assert forget.choose(near) == 0.5
    assert forget.choose({s: [-x for x in v] for s, v in clear.items()}, higher_is_better=False) == 1.0


# -- curves


def test_nested_shares_are_nested_stratified_and_keep_groups_together() -> None:
    rows = list(range(200))
    clusters = [i // 2 for i in rows]
    labels = ["a" if (i // 2) % 4 else "b" for i in rows]
    taken = [set(learning_curve.nested(rows, clusters, labels, share, 5)) for share in (1 / 8, 1 / 4, 1 / 2, 1.0)]
    assert all(a < b for a, b in itertools.pairwise(taken))
    assert taken[-1] == set(rows)
    for share, chosen in zip((1 / 8, 1 / 4, 1 / 2), taken, strict=False):
        assert len(chosen) == pytest.approx(200 * share, abs=4)
        assert sum(labels[i] == "b" for i in chosen) == pytest.approx(50 * share, abs=2)
        assert all((i ^ 1) in chosen for i in chosen)  # a pair of near-duplicates is never divided
    assert set(learning_curve.nested(rows, clusters, labels, 0.5, 6)) != taken[2]


def measured(sizes: list[int], error: Any, rows: int = 400, seeds: int = 3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.random((seeds, rows)) > error(n)).astype(float) for n in sizes]


def test_the_last_doubling_has_its_interval_and_its_word() -> None:
    rng = np.random.default_rng(0)
    half, better = (rng.random((1, 400)) > 0.5).astype(float), (rng.random((1, 400)) > 0.2).astype(float)
    told = extrapolation.last_doubling(better, half, list(range(400)), 0.05, 0.02)
    assert told["word"] == "helps"
    assert told["interval"][0] < told["gain"] < told["interval"][1]
    assert extrapolation.last_doubling(half, half, list(range(400)), 0.05, 0.02)["word"] == "does not visibly help"
    assert extrapolation.last_doubling(half[:, :9], better[:, :9], list(range(9)), 0.05, 0.02)["word"] == "may or may not help"
    three = np.repeat(half, 3, axis=0)
    uneven = three.copy()
    uneven[0] = 1.0
    wide = extrapolation.last_doubling(uneven, three, list(range(400)), 0.05, 0.02)["interval"]
    assert wide[1] - wide[0] > 0.3  # seeds that disagree widen it


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6])
def test_the_interval_of_a_doubling_holds_for_other_rows_and_other_seeds(spread: float) -> None:
    rng = np.random.default_rng(0)

    def right(ability: np.ndarray, level: float) -> np.ndarray:  # three seeds, each better or worse on every row
        return 1 / (1 + np.exp(-(ability + level + rng.normal(0, spread, (3, 1)))))

    many = rng.normal(0, 1.5, (1, 20_000))
    truth = np.mean([(right(many, 1.0) - right(many, 0.5)).mean() for _ in range(100)])
    held = 0
    for _ in range(300):
        ability = rng.normal(0, 1.5, (1, 80))
        whole, half = ((rng.random((3, 80)) < right(ability, level)).astype(float) for level in (1.0, 0.5))
        low, high = extrapolation.last_doubling(whole, half, list(range(80)), 0.05, 0.02)["interval"]
        held += low <= truth <= high
    assert held / 300 >= 0.93


def test_forecasts_are_told_only_where_they_would_have_held() -> None:
    sizes = [100, 200, 400, 800]
    power = extrapolation.forecast(sizes, measured(sizes, lambda n: 0.6 * (n / 100) ** -0.5), resamples=40)
    assert power["told"], power
    assert power["interval"][0] <= 1 - 0.6 * 16**-0.5 <= power["interval"][1]
    jump = extrapolation.forecast(sizes, measured(sizes, lambda n: 0.5 if n < 800 else 0.05), resamples=40)
    assert not jump["told"]
    assert "misses" in jump["why"]
    assert not extrapolation.forecast(sizes[:2], measured(sizes[:2], lambda n: 0.5))["told"]


# -- noise


def test_planted_label_noise_is_found_where_words_tell_the_label() -> None:
    rng = np.random.default_rng(0)
    texts, labels, wrong = [], [], set()
    for i in range(400):
        label = "ab"[i % 2]
        said = " ".join(rng.choice([f"{label}{k}" for k in range(8)] + ["x", "y", "z"], 9))
        if rng.random() < 0.15:
            wrong.add(i)
            label = "ba"[i % 2]
        texts.append(said)
        labels.append(label)
    found = label_noise.find(texts, labels, list(range(400)), list(range(400)))
    assert found is not None
    suspects = {s.row for s in found.suspects}
    assert len(suspects & wrong) / len(suspects) > 0.9
    assert len(suspects & wrong) / len(wrong) > 0.8
    assert found.interval[0] <= len(wrong) / 400 <= found.interval[1]
    assert abs(found.expected - len(suspects & wrong)) < 8
    assert label_noise.find(texts[:40], labels[:40], list(range(40)), list(range(40))) is None
    assert label_noise.find(texts, list(rng.permutation(labels)), list(range(400)), list(range(400))) is None  # it knows nothing


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.15, 0.3])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_a_judge_that_errs_is_told_from_labels_that_are_wrong(rate: float, sharpness: float) -> None:
    """Hard rows, three labels, and a model that is too sure or not sure enough: the noise is estimated all the same, the share of
    true finds among the suspects is the one foretold, and clean labels are left alone."""
    held, told, foretold, true, count = 0, [], 0.0, 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(600, 3)) * 1.5
        z[np.arange(600), rng.integers(0, 3, 600)] += 2
        p_RL = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        right = np.array([rng.choice(3, p=p) for p in p_RL])
        wrong = rng.random(600) < rate
        given = np.where(wrong, (right + rng.integers(1, 3, 600)) % 3, right)
        found = label_noise.judged(label_noise.tempered(p_RL, 1 / sharpness), "abc", ["abc"[i] for i in given], range(600))
        assert found.accuracy < 0.85
        told.append(found.rate)
        held += found.interval[0] - 1e-9 <= rate <= found.interval[1] + 1e-9
        foretold += found.expected
        true += sum(wrong[s.row] for s in found.suspects)
        count += len(found.suspects)
    assert held >= 17
    assert abs(np.mean(told) - rate) < 0.03
    if rate:
        assert abs(true - foretold) < 0.15 * count  # a little hopeful where few labels are wrong
    else:
        assert count < 0.005 * 20 * 600


def test_a_long_run_of_words_across_sides_is_an_overlap() -> None:
    long = " ".join(f"w{i}" for i in range(20))
    rows = [chat(f"{long} {i}" if i in (0, 9) else f"short question {i}", f"answer {i}") for i in range(10)]
    assert split.overlaps(rows, range(8), [8, 9]) == (9,)
    template = [chat(f"{long} number {i}", "x") for i in range(10)]
    assert split.overlaps(template, range(8), [8, 9]) == ()  # many rows have it: a template, not a leak


def test_order_statistics_bound_the_quantiles() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        told = cost.quantiles(rng.exponential(size=40))
        hits += told["p50"][1] <= np.log(2) <= told["p50"][2]
    assert hits >= 0.93 * 200


def test_a_difference_that_asking_twice_makes_as_well_tells_nothing() -> None:
    told = {"verdict": "BETTER", "difference": 0.05}
    assert prove.unsteady(told, {"floor": 0.05})["verdict"] == "CANNOT TELL"
    assert "verdict" not in prove.unsteady(told, {"floor": 0.0})
    assert "verdict" not in prove.unsteady({"verdict": "PRACTICALLY EQUAL", "difference": 0.0}, {"floor": 0.0})
