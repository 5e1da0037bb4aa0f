"""A judge model: its intervals cover what people prefer, and a judge that follows length or order is outcome out."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from endpoints import endpoint

from tunewright.core import records
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError, RunError
from tunewright.core.records import JudgeLine, JudgeResult, ScoreLine, WinRate
from tunewright.core.records.common import Interval
from tunewright.core.records.people import Side
from tunewright.core.records.score import Turn
from tunewright.core.run_folder import Run
from tunewright.data.endpoints import openai_endpoint
from tunewright.data.endpoints.openai_endpoint import Endpoint, Refused, api_key, ask, ask_each
from tunewright.data.messages import Message, Prompt
from tunewright.judge.people import judge as judging
from tunewright.judge.people import ppi
from tunewright.judge.people.judge import Chosen, Judge, Order
from tunewright.judge.people.pairs import Pair, pairs
from tunewright.runtime.people import Comparing

JUDGE = Judge(Endpoint("http://localhost:1/v1", "m"))


def line(row: int, answer: str) -> ScoreLine:
    question = Turn(role="user", content=f"question {row}")
    return ScoreLine(row=row, key="k", where=f"x:{row}", messages=(question,), target="t", answer=answer, score=0.5)


def made(count: int, seed: int = 0) -> list[Pair]:
    draw = np.random.default_rng(seed)
    tuned, other = (
        [line(i, f"{who} {i} " + "word " * int(n)) for i, n in enumerate(draw.integers(1, 40, count))] for who in "to"
    )
    return pairs(tuned, other)


def coverage(n: int, rest: int, agrees: float, prefers: float, trials: int = 400) -> tuple[float, float, float]:
    """(how often the interval contains people's rate, its mean width, the mean weight), if the judge's choice is
    people's with probability ``agrees``, and a coin's otherwise."""
    draw, hits, widths, weights = np.random.default_rng(1), 0, 0.0, 0.0
    for _ in range(trials):
        y = (draw.random(n + rest) < prefers).astype(float)
        f = np.where(draw.random(n + rest) < agrees, y, (draw.random(n + rest) < 0.7).astype(float))
        outcome = ppi.mean(y[:n], f[:n], f[n:], (range(n), range(rest)), 0.05)
        assert outcome is not None
        hits += outcome.interval.low <= prefers <= outcome.interval.high
        widths += outcome.interval.high - outcome.interval.low
        weights += outcome.weight
    return hits / trials, widths / trials, weights / trials


@pytest.mark.parametrize("prefers", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(("n", "rest", "agrees"), [(30, 300, 0.9), (40, 60, 0.0), (100, 1000, 0.6), (25, 0, 0.9)])
def test_coverage_whatever_the_judge(n: int, rest: int, agrees: float, prefers: float) -> None:
    """A judge that agrees, one that is a biased coin, and no rows but people's."""
    assert coverage(n, rest, agrees, prefers)[0] >= 0.93


@pytest.mark.parametrize(("same", "differ", "labelled"), [(0.5, 100, 20), (0.67, 300, 30), (0.1, 120, 40)])
@pytest.mark.parametrize("agrees", [0.0, 0.9])
def test_coverage_where_many_answers_are_the_same(same: float, differ: int, labelled: int, agrees: float) -> None:
    """People choose between some of the pairs that differ, the judge between all of these; the others are ties."""
    draw, hits, trials, prefers = np.random.default_rng(2), 0, 150, 0.8
    orders: tuple[Order, ...] = ("tuned", "other")
    for _ in range(trials):
        ties = draw.random(differ) < same
        tuned = [line(i, "the same" if tie else f"t {i}") for i, tie in enumerate(ties)]
        other = [line(i, "the same" if tie else f"o {i}") for i, tie in enumerate(ties)]
        shown = pairs(tuned, other)
        asked = [p for p in shown if not p.same]
        wins = {p.row: bool(draw.random() < prefers) for p in asked}
        by_judge = {r: w if draw.random() < agrees else bool(draw.random() < 0.5) for r, w in wins.items()}
        choices: dict[tuple[int, Order], Chosen | None] = {
            (p.row, o): "first" if by_judge[p.row] == (o == "tuned") else "second" for p in asked for o in orders
        }
        people: dict[int, Side] = {
            p.row: "left" if wins[p.row] == p.tuned_is_left else "right" for p in asked[:labelled]
        }
        outcome = judging.result(JUDGE, shown, choices, people, {i: i for i in range(differ)}, 0.05)
        assert outcome is not None
        assert outcome.corrected is not None
        hits += outcome.corrected.low <= 0.5 * same + prefers * (1 - same) <= outcome.corrected.high
    assert hits / trials >= 0.91  # of 150 trials: 0.95 minus two standard errors


def test_coverage_where_each_row_has_a_near_duplicate_that_only_the_judge_saw() -> None:
    draw, hits, trials = np.random.default_rng(4), 0, 400
    for _ in range(trials):
        y = (draw.random(60) < 0.6).astype(float)
        f = np.where(draw.random(60) < 0.95, y, 1 - y)
        outcome = ppi.mean(y, f, f, (range(60), range(60)), 0.05)
        assert outcome is not None
        hits += outcome.interval.low <= 0.6 <= outcome.interval.high
    assert hits / trials >= 0.93


def test_a_good_judge_narrows_the_interval_and_a_bad_one_does_not_widen_it() -> None:
    alone = coverage(40, 0, 0.0, 0.7)
    good, bad = coverage(40, 800, 0.95, 0.7), coverage(40, 800, 0.0, 0.7)
    assert good[1] < 0.7 * alone[1]
    assert good[2] > 0.7
    assert bad[1] < 1.03 * alone[1]
    assert bad[2] < 0.15


def test_rows_of_a_cluster_widen_the_interval() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat((draw.random(20) < 0.6).astype(float), 4)
    apart = ppi.mean(y, y, [], (range(80), []), 0.05)
    together = ppi.mean(y, y, [], (np.arange(80) // 4, []), 0.05)
    assert apart is not None
    assert together is not None
    widths = [e.interval.high - e.interval.low for e in (apart, together)]
    assert widths[1] > 1.6 * widths[0]


def test_few_labels_are_no_basis() -> None:
    assert ppi.mean([1.0] * 19, [1.0] * 19, [0.5] * 100, (range(19), range(100)), 0.05) is None


# -- judges that follow something else than what people want


def judged_by(choose: Callable[[Pair, Order], Chosen], people: int = 40, agree: float = 0.5) -> JudgeResult:
    """300 rows. People, who have seen 40, prefer the tuned answer in ``agree`` of them, whatever its length."""
    shown, draw = made(300), np.random.default_rng(5)
    chosen: dict[int, Side] = {}
    for pair in shown[:people]:
        wins = draw.random() < agree
        chosen[pair.row] = "left" if wins == pair.tuned_is_left else "right"
    orders: tuple[Order, ...] = ("tuned", "other")
    choices: dict[tuple[int, Order], Chosen | None] = {(p.row, o): choose(p, o) for p in shown for o in orders}
    outcome = judging.result(JUDGE, shown, choices, chosen, {p.row: p.row for p in shown}, 0.05)
    assert outcome is not None
    return outcome


def longer(pair: Pair, first: Order) -> Chosen:
    return "first" if (len(pair.tuned) > len(pair.other)) == (first == "tuned") else "second"


def test_a_judge_that_prefers_the_longer_answer_is_detected_by_people() -> None:
    outcome = judged_by(longer, agree=0.8)
    assert outcome.longer == 1
    assert outcome.agreement is not None
    assert not outcome.agreement.above_chance
    assert any("not shown to agree more often than chance" in text for text in judging.lines(outcome, None, "few_shot"))
    assert outcome.corrected is not None
    assert outcome.weight is not None
    assert outcome.weight < 0.3
    assert outcome.corrected.low <= 0.8 <= outcome.corrected.high, "the estimate is people's, not the judge's"


def test_a_judge_that_prefers_the_first_answer_decides_nothing() -> None:
    outcome = judged_by(lambda pair, first: "first")
    assert (outcome.first, outcome.contradicted) == (1, 1)
    assert (outcome.alone.rate, outcome.alone.tied) == (0.5, 300)
    assert outcome.agreement is None


def test_a_judge_that_always_says_tuned_agrees_by_chance() -> None:
    """Where people prefer tuned on nine rows of ten, it agrees on nine of ten, and knows nothing."""
    outcome = judged_by(lambda pair, first: "first" if first == "tuned" else "second", agree=0.9)
    assert outcome.agreement is not None
    assert outcome.agreement.interval.low > 0.7
    assert outcome.agreement.expected == pytest.approx(outcome.agreement.rate)
    assert not outcome.agreement.above_chance
    assert any("not shown to agree more often than chance" in text for text in judging.lines(outcome, None, "few_shot"))
    assert outcome.weight == 0


def test_a_judge_that_agrees_is_used() -> None:
    shown = made(300)
    even: dict[int, Side] = {p.row: "left" if (p.row % 3 > 0) == p.tuned_is_left else "right" for p in shown[:60]}
    orders: tuple[Order, ...] = ("tuned", "other")
    choices: dict[tuple[int, Order], Chosen | None] = {
        (p.row, o): "first" if (p.row % 3 > 0) == (o == "tuned") else "second" for p in shown for o in orders
    }
    outcome = judging.result(JUDGE, shown, choices, even, {p.row: p.row for p in shown}, 0.05)
    assert outcome is not None
    assert outcome.agreement is not None
    assert outcome.agreement.rate == 1
    assert outcome.agreement.above_chance
    assert outcome.contradicted == 0
    assert outcome.weight is not None
    assert outcome.weight > 0.7
    assert outcome.corrected_rate == pytest.approx(2 / 3, abs=0.03)


def test_a_judge_whose_replies_cannot_be_read_has_no_win_rate() -> None:
    shown = made(100)
    orders: tuple[Order, ...] = ("tuned", "other")
    choices: dict[tuple[int, Order], Chosen | None] = {
        (p.row, o): None if n % 4 == 0 else "first" for n, p in enumerate(shown) for o in orders
    }
    people: dict[int, Side] = {p.row: "left" for p in shown[:40]}
    outcome = judging.result(JUDGE, shown, choices, people, {p.row: p.row for p in shown}, 0.05)
    assert outcome is not None
    assert (outcome.unreadable, outcome.usable, outcome.corrected, outcome.agreement) == (50, False, None, None)
    (text,) = judging.lines(outcome, None, "few_shot")
    assert text.startswith("50 of the 200 replies of m name no answer, so it has no win rate")


def test_a_tie_in_one_order_only_depends_on_the_order() -> None:
    assert judged_by(lambda pair, first: "tie" if first == "tuned" else "first").contradicted == 1


def test_a_judge_that_looks_at_the_place_alone_has_no_win_rate() -> None:
    outcome = judged_by(lambda pair, first: "first")
    assert (outcome.contradicted, outcome.usable, outcome.corrected, outcome.agreement) == (1, False, None, None)
    (text,) = judging.lines(outcome, None, "few_shot")
    assert text.startswith("the choice of m depends on the order of the answers in 100% of the rows, so it has no win")


def test_no_common_preference_is_not_reported_as_no_choices() -> None:
    outcome = judged_by(lambda pair, first: "tie", people=30)
    rate = WinRate(rate=0.5, interval=Interval(0.4, 0.6), rows=30, won=15, tied=0, same=0, lost=15)
    assert outcome.agreement is None
    assert "no row on which both it and people prefer an answer" in judging.lines(outcome, rate, "few_shot")[1]


def test_a_judge_alone_is_no_evidence() -> None:
    outcome = judged_by(longer, people=0)
    assert outcome.agreement is None
    assert outcome.corrected is None
    assert "this is no evidence of what people prefer" in judging.lines(outcome, None, "few_shot")[1]


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        ("1", "first"),
        (" 2.\n", "second"),
        ("Tie", "tie"),
        ("**1**", "first"),
        ("<think>1 is longer</think>2", "second"),
        ("answer 2", "second"),
        ("The better answer is 2.", "second"),
        ("The better answer is 2, by far.", None),
        ("I prefer answer 1", "first"),
        ("Verdict: **2**", "second"),
        ("I'm sorry, I can't pick just 1.", None),
        ("Answer 2 is worse.", None),
        ("There is 1 clear winner: the second answer.", None),
        ("Rate limit: 1 request left", None),
        ("This is not a tie.", None),
        ("I would give neither full marks, but the second is better", None),
        ("1\n\nOn reflection, 2 is better.", None),
        ("1\n2", None),
        ("1\n\nAnswer 1 is friendlier than answer 2.", "first"),
        ("Both are polite. Answer 1 is longer.\n\n**Answer 2**", "second"),
        ("1. Answer 2 is too long.", None),
        ("Answer 1 is better than answer 2.", None),
        ("2 - it gives 1 example", None),
        ("Neither 1 nor 2 is better", None),
        ("Answer 1 is vague, so 2", None),
        ("Score: 1.5", None),
        ("10", None),
        ("Neither.", "tie"),
        ("", None),
    ],
)
def test_replies(reply: str, chosen: Chosen | None) -> None:
    assert judging.read(reply) == chosen


# -- a real endpoint


def test_every_pair_is_asked_about_once_in_both_orders_and_an_interrupted_command_continues(tmp_path: Path) -> None:
    shown = made(10)
    comparing = Comparing(Run(tmp_path), "few_shot", tuple(shown), 4, {p.row: p.row for p in shown}, 0.05)
    with endpoint(lambda asked: "1" if asked.index("t ") < asked.index("o ") else "2", fail_after=7) as (url, seen):
        judge = Judge(Endpoint(url, "m", concurrency=2), "the politer one")
        with pytest.raises(RunError, match="REMOTE_FAILED"):
            comparing.ask(judge, Console(quiet=True))
        written = len(list(records.read_lines(comparing.run.judge, JudgeLine)))
        assert 4 <= written <= 7
        assert comparing.result(judge).judge is None, "a part of the rows is no result"
    port = int(url.rpartition(":")[2].partition("/")[0])
    with endpoint(lambda asked: "1" if asked.index("t ") < asked.index("o ") else "2", port=port) as (url, seen):
        judge = Judge(Endpoint(url, "m", concurrency=2), "the politer one")
        comparing.ask(judge, Console(quiet=True))
        assert len(seen) == 20 - written
        comparing.ask(judge, Console(quiet=True))
        assert len(seen) == 20 - written, "nothing is asked twice"
    assert "the politer one" in seen[0]["messages"][0]["content"]
    outcome = comparing.result(judge).judge
    assert outcome is not None
    assert outcome.unreadable == 0
    other = Judge(Endpoint(url, "m"), "the shorter one")
    assert comparing.result(other).judge is None, "another rubric is another judge"


BROKEN = {
    "no message": b'{"choices": [{}]}',
    "a null message": b'{"choices": [{"message": null}]}',
    "no choices": b'{"choices": []}',
    "usage as a text": b'{"choices": [{"message": {"content": "1"}}], "usage": "none"}',
    "infinitely many tokens": b'{"choices": [{"message": {"content": "1"}}], "usage": {"prompt_tokens": Infinity}}',
    "depth": b"[" * 100_000,
    "a page": b"<html>busy</html>",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_reply_that_is_no_answer_costs_this_question_alone(what: str, tmp_path: Path) -> None:
    """And neither do refused questions, unless none is answered."""
    shown = made(6)
    comparing = Comparing(Run(tmp_path), "few_shot", tuple(shown), 6, {p.row: p.row for p in shown}, 0.05)
    odd = f"question {shown[2].row}"
    with endpoint(lambda asked: BROKEN[what] if odd in asked else 400 if "question 1" in asked else "1") as (url, _):
        comparing.ask(Judge(Endpoint(url, "m", concurrency=2)), Console(quiet=True))
    lines = list(records.read_lines(comparing.run.judge, JudgeLine))
    assert len(lines) == 12
    assert {line.row for line in lines if line.chosen is None} == {shown[2].row, 1}


def test_an_endpoint_that_refuses_everything_is_an_error_after_few_questions(tmp_path: Path) -> None:
    shown = made(100)
    comparing = Comparing(Run(tmp_path), "few_shot", tuple(shown), 100, {p.row: p.row for p in shown}, 0.05)
    with endpoint(lambda asked: 422) as (url, seen), pytest.raises(RunError, match=r"REMOTE_FAILED.*status 422"):
        comparing.ask(Judge(Endpoint(url, "m", concurrency=2)), Console(quiet=True))
    assert len(seen) < 50  # of 200; on a busy machine a few are asked before the first refusal is read


def test_replies_with_half_a_character_or_in_parts_are_read() -> None:
    half = b'{"choices": [{"message": {"content": "\\ud83d yes"}}], "usage": {"prompt_tokens": null}}'
    parts = b'{"choices": [{"message": {"content": [{"type": "text", "text": "2"}, {"type": "text", "text": "!"}]}}]}'
    sent = [half, parts]
    with endpoint(lambda asked: sent.pop(0)) as (url, _):
        replies = ask(Endpoint(url, "m", concurrency=1), [JUDGE.prompt(p, "tuned") for p in made(2)], 8)
    assert [reply.text for reply in replies] == ["\ufffd yes", "2!"]
    assert [reply.text.encode() for reply in replies]


def test_an_endpoint_that_asks_to_wait_is_waited_for() -> None:
    sent: list[str | int] = [429, "1"]
    begun = time.monotonic()
    with endpoint(lambda asked: sent.pop(0)) as (url, _):
        (reply,) = ask(Endpoint(url, "m"), [JUDGE.prompt(made(1)[0], "tuned")], 8)
    assert reply.text == "1"
    assert time.monotonic() - begun >= 1


def test_who_stops_asking_does_not_wait_for_a_server_that_does_not_answer() -> None:
    answer = threading.Event()
    first = iter(["1"])
    with endpoint(lambda asked: next(first, None) or str(answer.wait(60))) as (url, seen):
        replies = ask_each(Endpoint(url, "m", concurrency=2), [JUDGE.prompt(p, "tuned") for p in made(5)], 8)
        assert next(replies)[1].text == "1"  # type: ignore[union-attr]
        while len(seen) < 3:
            time.sleep(0.01)
        begun = time.monotonic()
        replies.close()  # type: ignore[attr-defined]
        assert time.monotonic() - begun < 5
        answer.set()


def test_no_reply_is_lost_when_a_question_cannot_be_sent() -> None:
    """Planted: a tool whose schema JSON cannot express; and a question with half a character, which can be sent."""
    prompts = [JUDGE.prompt(p, "tuned") for p in made(4)]
    prompts[1] = dataclasses.replace(prompts[1], tools=({"name": "f", "parameters": {"minimum": float("nan")}},))
    prompts[2] = Prompt((Message("user", "half \ud83d"),))
    with endpoint(lambda asked: "1") as (url, _):
        for concurrency in (1, 2, 8):
            replies = dict(ask_each(Endpoint(url, "m", concurrency=concurrency), prompts, 8))
            assert sorted(replies) == [0, 1, 2, 3]
            assert [isinstance(replies[place], Refused) for place in range(4)] == [False, True, False, False]


def test_any_other_failure_of_a_request_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(openai_endpoint, "_reply", broken)
    with endpoint(lambda asked: "1") as (url, _), pytest.raises(ZeroDivisionError):
        ask(Endpoint(url, "m"), [JUDGE.prompt(p, "tuned") for p in made(3)], 8)


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "http://[::1", "host/v1", ""])
def test_an_address_that_is_none_or_has_a_password_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="CONFIG_RANGE") as caught:
        api_key(url, "")
    assert "secret" not in str(caught.value)


def test_a_key_is_sent_as_it_was_meant_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "sk-abc\r\n")
    assert api_key("http://host/v1", "KEY") == "sk-abc"
    for key in ("sk-\nabc", "sk-ä"):
        monkeypatch.setenv("KEY", key)
        with pytest.raises(ConfigError, match="API key in KEY contains a character") as caught:
            api_key("http://host/v1", "KEY")
        assert "sk-" not in str(caught.value)
