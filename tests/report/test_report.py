"""The report from made-up records: exactly the right sections, nothing undefined, nothing unescaped."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from report import records

import tunewright
from tunewright.core.records import Audit, ScoreLine, Verdict
from tunewright.report import build, plots, sections

Make = Callable[[dict[str, Any]], None]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("losses", "arms", "pareto", "curve", "risk_coverage", "rungs"):
        monkeypatch.setattr(plots, name, lambda *_: Markup("<svg></svg>"))


def rendered(changed: dict[str, Any] | None = None) -> str:
    return build.report_page(records.files({**records.everything(), **(changed or {})}))


def with_verdict(**changed: Any) -> str:
    return rendered({"verdict": {**records.verdict(), **changed}})


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("</style>")[1]))


class Shape(HTMLParser):
    """What a browser would build: tags with their attributes, without texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(f"{k}={v}" for k, v in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))


# A text in each section of the full run, and how to remove the record of the section.
SECTIONS = {
    "cost": "8 test prompts on this run's machine",
    "forgetting": "next-token probabilities",
    "mitigation": "rate / 3",
    "learning_curve": "more data of this kind",
    "crossfit": "A model trained on the other rows flags 3 rows",
    "cleaning": "Trained without the flagged rows (duplicates: 3, suspect rows: 12)",
    "calibration": "Does it know when it is wrong?",
    "prompt_distillation": "Prompt distillation",
    "rerun": "test rows a second time",
    "fields": "rows.csv:3: expected 12.5, answered nothing",
    "overlap": "share a run of 13 words",
    "voice": "0.40 0.10 0.65",
}
NOT_MEASURED = {
    "cost": "Not measured. prove.evidence=full",
    "learning_curve": "Not measured. tunewright learning-curve RUN",
    "forgetting": "Not measured ( prove.evidence=plain )",
}


NO = {"measured": False}


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_present_exactly_with_its_record(name: str) -> None:
    assert SECTIONS[name] in text_of(rendered())
    nothing: list[Any] = [None] if name in ("calibration", "rerun", "overlap", "fields", "voice") else [None, NO]
    for absent in nothing:
        changed = {**absent, "flagged": {}} if absent and name == "cleaning" else absent
        shown = text_of(with_verdict(**{name: changed}))
        assert SECTIONS[name] not in shown
        assert NOT_MEASURED.get(name, "") in re.sub(r" ([.,;])", r"\1", shown)


@pytest.mark.usefixtures("no_charts")
def test_a_sweep_says_how_many_recipes_were_tried_and_claims_no_dev_loss() -> None:
    shown = text_of(rendered())
    assert "4 recipes were tried and compared by the loss of 30 dev rows; test was used once" in shown
    assert "is -0.2000 nats per token (-0.3500 to -0.0500, over dev rows and 2 seeds" in shown
    assert "do not report it as a result" in shown
    assert "TRAIN_NOT_FINITE" in shown
    kept = text_of(rendered({"sweep": {**records.sweep(), "chosen": 0}}))
    assert "train.lr=0.01, is not shown to beat the default" in kept
    assert "Which recipe?" not in text_of(rendered({"sweep": None}))


@pytest.mark.usefixtures("no_charts")
def test_what_people_and_a_judge_prefer() -> None:
    shown = text_of(rendered())
    assert "people 62.5% 50.0% to 75.0% 40 20 10 10" in shown
    assert "People preferred its answers in 62% of 40 rows (50% to 75%; no clear preference)." in shown
    assert "60% (45% to 75%) of 30 rows; 55% would be by chance: not shown to agree more often than chance" in shown
    assert "people prefer the tuned model in 61.0% (55.0% to 70.0%) of all rows" in shown
    only_judge = {"agreement": None, "corrected": None, "corrected_rate": None, "weight": None}
    (compared,) = records.preferences()["comparisons"]
    by_judge = {**compared, "people": None, "judge": {**compared["judge"], **only_judge}}
    alone = text_of(rendered({"people": {"comparisons": [by_judge]}}))
    assert "this is no evidence of what people prefer" in alone
    assert "Tuned or nearest: which answers does the judge prefer?" in alone
    both = text_of(rendered({"people": {"comparisons": [compared, {**compared, "against": "reference"}]}}))
    assert "Tuned or nearest: which answers do people prefer?" in both
    assert "Tuned or reference: which answers do people prefer?" in both
    garbled = {**by_judge, "judge": {**by_judge["judge"], "unreadable": 30, "asked": 40, "usable": False}}
    unusable = text_of(rendered({"people": {"comparisons": [garbled]}}))
    assert "30 of the 80 replies of judge-1 name no answer, so it has no win rate" in unusable
    assert "which answers" not in text_of(rendered({"people": None}))


@pytest.mark.usefixtures("no_charts")
def test_sections_come_in_the_order_of_decisions() -> None:
    assert re.findall(r"<h2>(.*?)</h2>", rendered()) == [
        "Better than what?",
        "Does it sound like you?",
        "Tuned or nearest: which answers do people prefer?",
        "What does a request cost?",
        "What was forgotten?",
        "Was there enough data?",
        "Was the data clean?",
        "Which fields are wrong?",
        "Row by row",
        "Does it know when it is wrong?",
        "Prompt distillation",
        "Which recipe?",
        "Training",
        "Exports, reloaded and compared",
        "The plan",
        "Protocol and reproduction",
    ]


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    run = records.write(tmp_path / "one", records.everything())
    build.write(run)
    for file in (run.report, run.audit.with_suffix(".html")):
        html = file.read_text(encoding="utf-8")
        assert not re.search(r'(?:src|href)="https?:|<script|@import|url\((?!#)', html)
        assert html.startswith("<!doctype html>")
    assert run.report.read_text(encoding="utf-8").count("<svg") == 6, "every chart"


@pytest.mark.usefixtures("no_charts")
def test_the_audit_page_is_the_audit() -> None:
    shown = text_of(build.audit_page(records.typed(Audit, records.audit()), "rows.csv"))
    assert "tunewright check rows.csv" in shown
    assert "41 rows are near-duplicates" in shown
    assert re.search(r"7 changed data\.control=strip DATA_CONTROL_CHAR ?, e\.g\. removed U\+001B.+rows\.csv:50,", shown)
    assert "Labels that look wrong, the most suspicious first (50 of 51)" in shown
    assert "Schema of the answers: inferred from the training answers." in shown
    assert "98.0% of test" in shown
    assert "id integer, always present" in shown
    plain = {**records.audit(), "findings": [], "suspects": [], "labels": {}, "unused": {}, "answer_schema": None}
    assert "The audit flagged nothing." in text_of(build.audit_page(records.typed(Audit, plain), "rows.csv"))


@pytest.mark.usefixtures("no_charts")
def test_a_single_untrained_arm_is_not_called_favoured() -> None:
    """Raw text has one untrained arm, so nothing was chosen."""
    several = records.verdict()
    name = several["comparator"]["name"]
    chosen_on_test = {"comparator": {**several["comparator"], "chosen_on": "test"}}
    assert "which favours it" in text_of(with_verdict(**chosen_on_test))
    one = with_verdict(**chosen_on_test, arms={arm: several["arms"][arm] for arm in (name, "tuned")})
    assert "There was only one untrained arm, so it is the comparator." in text_of(one)


@pytest.mark.usefixtures("no_charts")
def test_intervals_of_forgetting_have_the_level_of_the_run() -> None:
    assert "difference (90%)" in text_of(with_verdict(alpha=0.1))


def either(*records_: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(records_)


EVIDENCE = {
    "cost": either(
        None,
        NO,
        records.cost(),
        {**records.cost(), "money": None},
        {
            **records.cost(),
            "money": {**records.cost()["money"], "break_even_requests": None, "why_not": "it is not cheaper"},
        },
    ),
    "mitigation": either(None, NO, records.mitigation()),
    "fields": either(None, [], records.fields()[:3], records.fields()),
    "learning_curve": either(
        None,
        NO,
        records.curve(),
        {**records.curve(), "points": [{**p, "seeds": p["seeds"][:1]} for p in records.curve()["points"]]},
        {**records.curve(), "forecast": {"available": False, "reason": "a forecast needs four sizes"}},
    ),
    "crossfit": either(
        None,
        NO,
        records.crossfit(),
        {**records.crossfit(), "suspects": []},
        {
            "measured": True,
            "folds": 2,
            "cuts": 2,
            "suspects": [{"row": 3, "nats_over_base": 0.4, "where": "rows.csv:5"}],
        },
    ),
    "cleaning": either(None, {**NO, "flagged": {}}, {**NO, "flagged": {"duplicates": 3}}, records.cleaning()),
    "calibration": either(
        None,
        records.calibration(),
        {k: v for k, v in records.calibration().items() if k != "handover"},
        {**records.calibration(), "handover": {**records.calibration()["handover"], "accuracy": None}},
    ),
    "prompt_distillation": either(None, NO, records.distillation()),
    "rerun": either(None, records.verdict()["rerun"]),
    "overlap": either(None, records.verdict()["overlap"]),
    "corpus": either(
        {**records.verdict()["corpus"], "metric": "accuracy"}, {**records.verdict()["corpus"], "interval": None}
    ),
    "verdict": either("BETTER", "WORSE", "PRACTICALLY EQUAL", "CANNOT TELL"),
    "unbeaten": either([], ["zero_shot", "nearest"]),
    "rows_needed": either(None, 240),
    "task": either("label", "text"),
    "p_value": either(0.0, 0.5),
    "test_reads": either(1, 2),
    "variants_on_dev": either({}, {"zero_shot-wording2": 0.3}),
}
FORGETTING = {
    "task": either(None, records.forgetting()["task"]),
    "generic": either(None, records.forgetting()["generic"]),
    "sweep": either(None, records.forgetting()["sweep"]),
    "probes": either(None, records.probes(), records.refusals_measured()),
    "regression_rows": either(None, records.forgetting()["regression_rows"]),
    "chosen": either(0.5, 1.0),
}
OTHERS = {
    "training": either(records.training(), {**records.training(), "best_step": None, "stopped_early": True}),
    "plan": either(records.plan(), {**records.plan(), "estimate": None}),
    "selftest": either(None, records.everything()["selftest"]),
    "export": either(None, records.exports()),
    "protocol": either(records.protocol(), {**records.protocol(), "detectable": None}),
    "events": either([], records.everything()["events"]),
    "scores/tuned": either(records.scores(0.4), records.scores(0.9)),
}


@pytest.mark.usefixtures("no_charts")
@QUICK
@given(
    st.fixed_dictionaries(EVIDENCE),
    st.one_of(st.none(), st.just(NO), st.fixed_dictionaries(FORGETTING)),
    st.fixed_dictionaries(OTHERS),
)
def test_no_combination_of_evidence_leaves_anything_undefined(
    evidence: dict[str, Any], forgetting: dict[str, Any] | None, others: dict[str, Any]
) -> None:
    measured = {"measured": True, "scales": [0.5, 1.0], "rule": "the smallest scale"}
    verdict = {k: v for k, v in records.verdict().items() if k not in (*EVIDENCE, "forgetting")} | evidence
    verdict["forgetting"] = {**measured, **forgetting} if forgetting and "measured" not in forgetting else forgetting
    html = rendered({"verdict": verdict, **others})
    assert "Undefined" not in html
    assert not re.search(r"\bNone\b(?!\.)", text_of(html)), "None. is what an empty list of rows says"


# Strings that select what is shown; every other string is free text.
CHOOSING = {"verdict", "metric", "task", "chosen_on", "level", "outcome", "event", "role", "kind", "format", "time"} | {
    "action", "list_order", "layout", "kernels", "gradient_checkpointing", "dtype", "schedule"
}  # fmt: skip


def with_texts(value: Any, texts: Iterator[str], key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: with_texts(v, texts, k) for k, v in value.items()}
    if isinstance(value, list):
        return [with_texts(v, texts, key) for v in value]
    return next(texts) if isinstance(value, str) and key not in CHOOSING else value


def repeated(texts: list[str]) -> Iterator[str]:
    while True:
        yield from texts


MARKUP = st.sampled_from(
    ["<b>", "</style>", "<script>x</script>", '"><img src=x onerror=y>', "&lt;i&gt;", "{{ 7*7 }}", "--></p>", "'"]
)


@pytest.mark.usefixtures("no_charts")
@QUICK
@given(st.lists(MARKUP | st.text(min_size=1).filter(str.strip), min_size=1, max_size=7))
def test_no_text_becomes_markup(texts: list[str]) -> None:
    everything = records.everything()
    names = {"name": everything["verdict"]["comparator"]["name"]}
    plain, hostile = (with_texts(everything, repeated(words)) for words in (["x"], texts))
    for actual in (plain, hostile):
        actual["verdict"]["comparator"] |= names
        actual["verdict"]["calibration"]["curve"] = everything["verdict"]["calibration"]["curve"]
    labels = dict.fromkeys(texts, 1)
    plain["data/audit"]["labels"], hostile["data/audit"]["labels"] = {str(i): 1 for i in range(len(labels))}, labels
    expected, actual_ = (Shape(build.report_page(records.files(r))).tags for r in (plain, hostile))
    assert actual_ == expected
    audits = (
        Shape(build.audit_page(records.typed(Audit, r["data/audit"]), w)).tags
        for r, w in ((plain, "x"), (hostile, texts[0]))
    )
    assert next(audits) == next(audits)


def test_no_chart_label_becomes_markup() -> None:
    chart = plots.arms([plots.Bar("tuned", 0.5, 0.4, 0.6), plots.Bar('<b>"$x', 0.3, 0.2, 0.4)], '<i>"$', True, "tuned")
    assert {tag for tag, *_ in Shape(chart).tags} & {"b", "i"} == set()


@pytest.mark.usefixtures("no_charts")
def test_shown_rows_hide_private_values() -> None:
    private = [{**line, "target": "write to anna@mail.example.org"} for line in records.scores(0.9)]
    html = rendered({"scores/tuned": private})
    assert "mail.example" not in html
    assert "write to [e-mail address]" in html


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({}, "On 12 held-out rows the tuned model is better than the best untrained arm (nearest)."),
        ({"verdict": "WORSE"}, "Do not use it. What did better:"),
        ({"verdict": "PRACTICALLY EQUAL"}, "differ by less than the margin of 0.02."),
        ({"verdict": "CANNOT TELL", "rows_needed": 240, "interval": [-0.1, 0.2]}, "About 240 rows would."),
        ({"verdict": "CANNOT TELL", "unbeaten": ["zero_shot"]}, "but not shown to be better than zero shot"),
        (
            {"verdict": "WORSE", "unbeaten": ["zero_shot"], "better": ["zero_shot"]},
            "is worse than zero shot, although the untrained arm chosen on dev is nearest. Do not use it.",
        ),
        ({"interval": [0.01, 0.3]}, "The lower end of the interval is below 0.02"),
    ],
)  # fmt: skip
def test_the_lead_states_the_verdict(changed: dict[str, Any], sentence: str) -> None:
    assert sentence in text_of(with_verdict(**changed))


def cautions(verdict: dict[str, Any]) -> list[str]:
    return sections.cautions(records.typed(Verdict, verdict))


def test_cautions_name_what_the_verdict_leaves_out() -> None:
    verdict = records.verdict()
    assert [c.split(":")[0] for c in cautions(verdict)] == ["The tuned model got worse at knowledge questions"]
    verdict["arms"]["tuned"]["summary"]["cut_answers"] = 0.5
    verdict["arms"]["classical"]["tuned_minus_this"]["interval"] = [-0.01, 0.1]
    verdict["forgetting"]["regression_rows"]["verdict"] = "WORSE"
    actual = cautions(verdict)
    assert actual[1].startswith("The tuned model got worse on your regression rows: 0.730 before, 0.670 after")
    assert "TF-IDF" in actual[2]
    assert actual[3].startswith("50% of tuned answers and 0% of nearest answers were cut off at 96 tokens")
    verdict["forgetting"] = {"measured": False}
    assert len(cautions(verdict)) == 2


def test_rows_are_ordered_by_what_tuning_changed() -> None:
    lines = [
        [records.typed(ScoreLine, {**line, "score": s}) for line, s in zip(records.scores(0), scores, strict=False)]
        for scores in ([0.0, 0.2, 1.0, 0.5], [1.0, 0.3, 0.1, 0.5])
    ]
    actual = sections.changes(*lines, "accuracy")
    assert (actual.better, actual.worse, actual.same) == (1, 2, 1)
    assert [c.where for c in actual.regressions] == ["rows.csv:2", "rows.csv:3"]
    lower_is_better = sections.changes(*lines, "bits_per_byte")
    assert (lower_is_better.better, lower_is_better.worse) == (2, 1)


def test_no_module_writes_html() -> None:
    """Markup is in templates; charts are drawn by matplotlib."""
    package = Path(tunewright.__file__).parent
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"</?(?:p|div|table|t[dhr]|h\d|span|details|figure)\b[^>]*>", node.value), file
