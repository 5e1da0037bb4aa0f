"""Blind comparisons: what is shown, what is kept, what the server refuses, and the page in a real browser."""

from __future__ import annotations

import dataclasses
import http.client
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest

from tunewright.core import records, run_folder
from tunewright.core.errors import ConfigError, RunError, TrainError
from tunewright.core.records import Choice, Preferences, ScoreLine
from tunewright.core.records.score import Turn
from tunewright.core.run_folder import Run
from tunewright.judge.people.pairs import Pair, pairs
from tunewright.judge.people.win_rate import sentence, win_rate
from tunewright.runtime import people
from tunewright.runtime.people import Comparing
from tunewright.runtime.people_page import Page


def line(row: int, answer: str) -> ScoreLine:
    question = Turn(role="user", content=f"question {row} <b>&amp;")
    return ScoreLine(row=row, key="k", where=f"x:{row}", messages=(question,), target="t", answer=answer, score=0.5)


@pytest.fixture
def comparing(tmp_path: Path) -> Comparing:
    tuned = [line(i, f"tuned {i}" if i != 3 else "the same") for i in range(8)]
    other = [line(i, f"<script>other {i}</script>" if i != 3 else "the same ") for i in range(8)]
    shown = tuple(pairs(tuned, other))
    return Comparing(Run(tmp_path), "zero_shot", shown, 8, {i: i for i in range(8)}, 0.05)


def prefer_tuned(pair: Pair) -> people.Side:
    return "left" if pair.tuned_is_left else "right"


def test_sides_are_shuffled_and_the_order_has_nothing_to_do_with_the_answers() -> None:
    tuned, other = [line(i, f"a{i}") for i in range(400)], [line(i, f"b{i}") for i in range(400)]
    shown = pairs(tuned, other)
    left = [pair.tuned_is_left for pair in shown]
    assert 150 < sum(left) < 250
    assert [p.row for p in shown] != list(range(400))
    assert [p.row for p in pairs(tuned, [line(i, f"c{i}") for i in range(400)])] == [p.row for p in shown]


def test_a_choice_survives_a_restart_and_can_be_taken_back(comparing: Comparing) -> None:
    assert len(comparing.asked) == 7, "nobody is asked about equal answers"
    first = comparing.next()
    assert first is not None
    comparing.choose(first.row, prefer_tuned(first))
    again = people.Comparing(comparing.run, "zero_shot", comparing.pairs, 8, comparing.clusters, 0.05)
    second = again.next()
    assert second is not None
    assert second.row != first.row
    again.choose(second.row, "tie")
    again.take_back()
    assert again.choices() == {first.row: prefer_tuned(first)}
    again.take_back()
    again.take_back()
    assert again.choices() == {}
    assert again.result().people is None
    assert len(list(records.read_lines(comparing.run.people, Choice))) == 4, "lines are only added"


def test_choices_between_other_answers_do_not_count(comparing: Comparing) -> None:
    for pair in comparing.asked:
        comparing.choose(pair.row, prefer_tuned(pair))
    changed = pairs([line(i, f"tuned {i}") for i in range(8)], [line(i, f"new {i}") for i in range(8)])
    assert Comparing(comparing.run, "zero_shot", tuple(changed), 8, comparing.clusters, 0.05).choices() == {}
    assert Comparing(comparing.run, "few_shot", comparing.pairs, 8, comparing.clusters, 0.05).choices() == {}


def test_the_win_rate_is_of_the_tuned_answers_whatever_their_side(comparing: Comparing) -> None:
    for pair in comparing.asked[:5]:
        comparing.choose(pair.row, prefer_tuned(pair))
    comparing.choose(comparing.asked[5].row, "tie")
    loser = comparing.asked[6]
    comparing.choose(loser.row, "right" if loser.tuned_is_left else "left")
    rate = comparing.result().people
    assert rate is not None
    assert (rate.won, rate.tied, rate.same, rate.lost, rate.rows) == (5, 2, 1, 1, 8)
    assert rate.rate == pytest.approx((5 + 1) / 8)
    assert "by people, the win rate of tuned over zero shot is 75.0% [" in sentence(rate, "zero_shot")


def test_coverage_of_the_win_rate() -> None:
    draw, hits, trials = np.random.default_rng(3), 0, 0
    for n, p in ((30, 0.5), (30, 0.85), (60, 0.65), (100, 0.95)):
        shown = pairs([line(i, "a") for i in range(n)], [line(i, "b") for i in range(n)])
        clusters = {i: i for i in range(n)}
        for _ in range(150):
            won = draw.random(n) < p
            tie = draw.random(n) < 0.2
            chosen: dict[int, people.Side] = {
                pair.row: "tie" if t else "left" if w == pair.tuned_is_left else "right"
                for pair, w, t in zip(shown, won, tie, strict=True)
            }
            rate = win_rate(shown, chosen, clusters, 0.05, n)
            assert rate is not None
            hits += rate.interval.low <= 0.8 * p + 0.1 <= rate.interval.high
            trials += 1
    assert hits / trials >= 0.93


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_equal_answers_count_wherever_they_are(fraction: float) -> None:
    """Who answers all questions has seen all 50 pairs; without the equal ones at the end, a win would weigh more."""
    draw, rates = np.random.default_rng(4), []
    for _ in range(300):
        differ = draw.random(80) < fraction
        shown = pairs(
            [line(i, f"a{i}") for i in range(80)], [line(i, "b" if d else f"a{i}") for i, d in enumerate(differ)]
        )
        asked = [pair for pair in shown[:50] if not pair.same]
        chosen = {pair.row: prefer_tuned(pair) for pair in asked}
        rate = win_rate(shown, chosen, {i: i for i in range(80)}, 0.05, 50)
        if rate is not None:
            assert (rate.rows, rate.won) == (50, len(asked))
            partial = win_rate(shown, dict(list(chosen.items())[:1]), {i: i for i in range(80)}, 0.05, 50)
            assert partial is not None
            following = [place for place, pair in enumerate(shown[:50]) if not pair.same][1:]
            assert partial.rows == (following[0] if following else 50)
        rates.append(rate.rate if rate else 0.5)
    assert np.mean(rates) == pytest.approx(0.5 + fraction / 2, abs=0.01)


def test_choices_by_another_rubric_do_not_count(comparing: Comparing) -> None:
    for pair in comparing.asked[:3]:
        comparing.choose(pair.row, "tie")
    other = dataclasses.replace(comparing, rubric="the shorter one")
    assert other.choices() == {}
    other.choose(other.asked[0].row, "left")
    assert (len(comparing.choices()), len(other.choices())) == (3, 1)
    assert other.result().rubric == "the shorter one"
    for one in (comparing, other):
        one.save(one.result())
    kept = records.read(comparing.run.preferences, Preferences).comparisons
    assert [c.rubric for c in kept] == ["the shorter one", ""], "one does not replace the other"


def test_a_choice_can_be_taken_back_when_fewer_rows_are_shown(comparing: Comparing) -> None:
    for pair in comparing.asked:
        comparing.choose(pair.row, "tie")
    fewer = dataclasses.replace(comparing, count=2)
    last = list(fewer.choices())[-1]
    fewer.take_back()
    assert last not in fewer.choices()
    assert fewer.pair_of(last) is not None


def test_a_damaged_line_is_to_be_removed_and_not_the_file(comparing: Comparing) -> None:
    for pair in comparing.asked[:2]:
        comparing.choose(pair.row, "tie")
    text = comparing.run.people.read_text().splitlines()
    comparing.run.people.write_text("\n".join([text[0], '{"row": 1', text[1], ""]))
    with pytest.raises(RunError, match=r"people.jsonl:2: .*Fix: remove this line"):
        comparing.choices()


def test_only_one_process_asks(comparing: Comparing) -> None:
    with people.alone(comparing.run), pytest.raises(RunError, match="RUN_LOCKED"), people.alone(comparing.run):
        pass
    with people.alone(comparing.run):
        pass


# -- the page


def test_a_choice_that_cannot_be_saved_is_an_error_on_the_page(
    comparing: Comparing, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise TrainError("RUN_DISK", "no space left.", where="people.jsonl", fix="make room.")

    monkeypatch.setattr(Comparing, "choose", full)
    row = comparing.asked[0].row
    status, text, _ = ask(page.url, "POST", f"row={row}&choice=left")
    assert (status, "no space left" in text, "was not saved" in text) == (507, True, True)


@pytest.fixture
def page(comparing: Comparing) -> Iterator[Page]:
    with closing(Page(comparing)) as served:
        yield served


def ask(url: str, method: str = "GET", body: str = "", **headers: str) -> tuple[int, str, dict[str, str]]:
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)) as connection:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), body or None, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), {k.lower(): v for k, v in response.getheaders()}


def test_the_page_escapes_everything_and_does_not_say_who_is_who(page: Page, comparing: Comparing) -> None:
    status, text, headers = ask(page.url)
    assert status == 200
    pair = comparing.next()
    assert pair is not None
    assert f"question {pair.row} &lt;b&gt;&amp;amp;" in text
    assert "<script>other" not in text
    nonce = re.search(r'<script nonce="([\w-]+)"', text)
    assert nonce
    assert f"script-src 'nonce-{nonce[1]}'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r"https?://", text), "nothing is fetched"
    seen = text.replace("<script", "").replace("the tuned model", "")
    assert not re.search(r"(?<!&gt;)\btuned\b(?! \d)", seen)


def test_without_the_secret_nothing_is_served_or_chosen(page: Page, comparing: Comparing) -> None:
    parts = urlsplit(page.url)
    root = f"http://{parts.netloc}"
    row = comparing.asked[0].row
    for path in ("/", "/favicon.ico", parts.path[:-1], f"{parts.path}x", "/%2e%2e/etc/passwd"):
        assert ask(root + path)[0] == 404
        assert ask(root + path, "POST", urlencode({"row": row, "choice": "left"}))[0] == 404
    assert comparing.choices() == {}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "choice=left",
        "row=99999&choice=left",
        "row=0&choice=both",
        "row=-1&choice=tie",
        "row=%D9%A3&choice=tie",
        "%ff=%00",
    ],
)
def test_what_is_no_choice_is_refused(body: str, page: Page, comparing: Comparing) -> None:
    assert ask(page.url, "POST", body)[0] == 400
    assert comparing.choices() == {}


def test_a_request_without_a_length_or_with_too_much_is_refused(page: Page) -> None:
    assert ask(page.url, "POST", "choice=left&x=" + "a" * 5000)[0] == 400
    parts = urlsplit(page.url)
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)) as connection:
        connection.putrequest("POST", parts.path)
        connection.putheader("content-length", "-5")
        connection.endheaders()
        assert connection.getresponse().status == 400


def test_equal_answers_are_not_asked_about_by_hand(page: Page, comparing: Comparing) -> None:
    assert ask(page.url, "POST", urlencode({"row": 3, "choice": "left"}))[0] == 400


def test_choosing_by_form_ends_with_the_result(page: Page, comparing: Comparing) -> None:
    for pair in comparing.asked:
        status, _, headers = ask(page.url, "POST", urlencode({"row": pair.row, "choice": prefer_tuned(pair)}))
        assert (status, headers["location"]) == (303, urlsplit(page.url).path)
    assert "94%" in ask(page.url)[1]  # 7 of 7, and one with the same answer
    assert not page.done.is_set(), "the last choice can still be changed"
    status, text, _ = ask(page.url, "POST", urlencode({"choice": "finish"}))
    assert (status, "Finished" in text) == (200, True)
    assert page.done.wait(5)


def test_a_choice_is_shown_again_and_changed(page: Page, comparing: Comparing) -> None:
    first, second = comparing.asked[:2]
    for pair in (first, second):
        ask(page.url, "POST", urlencode({"row": pair.row, "choice": "left"}))
    again = ask(f"{page.url}?row={first.row}")[1]
    assert "1 of 7" in again
    assert re.findall(r'value="(\w+)" data-key="\d" aria-pressed="true"', again) == ["left"]
    assert comparing.choices() == {first.row: "left", second.row: "left"}, "going back changes nothing"
    ask(page.url, "POST", urlencode({"row": first.row, "choice": "tie", "again": 1}))
    assert comparing.choices() == {second.row: "left", first.row: "tie"}


def test_another_tab_does_not_replace_a_choice(page: Page, comparing: Comparing) -> None:
    row = comparing.asked[0].row
    for choice in ("left", "right"):
        assert ask(page.url, "POST", urlencode({"row": row, "choice": choice, "again": 0}))[0] == 303
    assert comparing.choices() == {row: "left"}


def test_a_port_that_is_in_use_is_an_error_of_ours(page: Page, comparing: Comparing) -> None:
    with pytest.raises(ConfigError, match=r"CONFIG_RANGE.*port \d+ cannot be used"):
        Page(comparing, urlsplit(page.url).port or 0)


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(chromium() is None, reason="chromium is not installed")
def test_the_keyboard_is_enough(page: Page, comparing: Comparing) -> None:
    """In a real browser, in both themes and at two widths: nothing overflows, nothing else is requested, no errors."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for scheme, width in (("light", 1200), ("dark", 380)):
            tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            errors: list[str] = []
            tab.on("console", lambda message, errors=errors: errors.append(message.text))
            tab.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            tab.goto(page.url)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert [e for e in errors if "favicon" not in e] == []
        first = comparing.next()
        assert first is not None

        def press(key: str) -> None:
            tab.wait_for_timeout(300)  # keys at once are meant for the pair before
            with tab.expect_navigation():
                tab.keyboard.press(key)

        press("1")
        assert comparing.choices() == {first.row: "left"}
        press("b")
        assert comparing.choices() == {first.row: "left"}
        for _ in range(3):  # with the Tab key: the reference answer, the first two buttons
            tab.keyboard.press("Tab")
        press("Enter")
        assert comparing.choices() == {first.row: "tie"}
        tab.wait_for_timeout(300)
        tab.keyboard.press("ArrowDown")
        tab.wait_for_timeout(200)
        assert len(comparing.choices()) == 1, "it scrolls"
        for key in ("2", "0", "2", "1", "1", "0"):
            press(key)
        assert tab.locator("h1").inner_text() == "Done"
        assert len(comparing.choices()) == 7
        press("b")
        press("1")
        press("f")
        assert tab.locator("h1").inner_text() == "Finished"
        assert page.done.wait(5)
        browser.close()


def test_the_run_folder_has_one_more_file(tmp_path: Path) -> None:
    assert run_folder.Run(tmp_path).people == tmp_path / "people.jsonl"
    assert any(file.pattern == "people.jsonl" for file in records.FILES)
