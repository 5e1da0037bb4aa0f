"""Write examples/*/README.md and docs/reports/*.html from the logs, verdicts and reports of actual runs.

for e in addresses tools entities sentiment support jargon preferences rewards distillation docs embeddings; do
  tunewright run examples/$e/config.yaml --runs /tmp/examples --name $e > /tmp/examples-$e.log 2>&1; done
python scripts/example_readmes.py /tmp/examples /tmp/examples-{}.log

make demo > /tmp/demo.log 2>&1; python scripts/example_readmes.py --demo runs/NAME /tmp/demo.log   # README.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent / "examples"
REPORTS = EXAMPLES.parent / "docs" / "reports"
DEMO = "<!-- written by scripts/example_readmes.py --demo -->"
BEFORE = {
    "distillation": [".venv/bin/tunewright run examples/distillation/teacher.yaml --name distillation-teacher"],
}
INTRODUCTIONS = {
    "addresses": (
        "US addresses to JSON",
        "Structured extraction: 1,504 addresses labelled by hand (usaddress 0.5.16, MIT), 2 to 12 parts each. The "
        "zero-shot base does not know the fields, so the arms to beat are those with examples in the prompt.",
    ),
    "entities": (
        "Parties and places in loan agreements",
        "Extraction of entities: sentences of loan agreements filed with the US Securities and Exchange Commission, and "
        "the persons, organizations and locations that they name, annotated by hand (Salinas Alvarado, Verspoor and "
        "Baldwin 2015). Answers are JSON arrays of objects, a third of them empty. Items are matched one to one, so an "
        "item with the type of one entity and the text of another is wrong.",
    ),
    "tools": (
        "Tool calls",
        "Which function to call with which arguments, or none: 300 conversations with tools (a sample of "
        "glaive-function-calling-v2, Apache-2.0, written by a model), each cut after its first call. The base model's own "
        "template has no tools, so the run uses chatml-tools. A call is scored by its name and arguments; "
        "answering in words where a call is expected, or the other way round, is wrong.",
    ),
    "sentiment": (
        "Sentiment of short texts",
        "Classification into positive, neutral and negative (VADER ground truth, MIT). A label is chosen by the "
        "log-probability of the whole answer. A constant answer and a TF-IDF classifier are arms too: compare with "
        "these before you trust a language model.",
    ),
    "support": (
        "A support assistant",
        "310 real questions and answers from the Python, Debian and SQLite FAQs; the retrieval arms search the Python "
        "tutorial and HOWTOs and SQLite's pages. The verdict is about how likely each arm finds the answers that the "
        "projects gave (reference_bits: bits per byte, lower is better). This measures tone, form and choice of "
        "words; a 135M model does not know the facts. The report also shows what a reader would notice: chrF, answers "
        "that loop or were cut off, and how easily a classifier distinguishes the answers from the projects' own.",
    ),
    "jargon": (
        "The voice of one author",
        "Hackers' slang as the Jargon File explains it (public domain): 1,925 terms, one unmistakable author. The "
        "verdict is about how likely each arm finds his answers (reference_bits: bits per byte, lower is better), and "
        "whether they are likelier after their own question than after another one.",
    ),
    "preferences": (
        "Preferences between two dictionaries",
        "Pairs of definitions of one word: the Devil's Dictionary (Bierce, public domain) is chosen, WordNet (free "
        "licence) rejected. The model is trained with DPO, and judged twice: like any run, against the base with a prompt "
        "and with examples, by how likely each arm finds Bierce's definitions; and against fine-tuning on Bierce's "
        "definitions alone, with the same rows and steps.\n\nThe result is negative, at two and a half times the plan's own "
        "learning rate. Training looks perfect: its loss falls to 0.08, the model prefers Bierce in every test pair more "
        "than before, and a classifier of style takes its answers for his. But the chosen answers became less likely, and "
        "no answer ends before the limit. Fine-tuning on the chosen answers is much better.",
    ),
    "rewards": (
        "JSON with given keys, from rewards",
        "250 generated prompts for JSON objects with two or three given keys, and no answers. The reward is a quarter for a "
        "JSON object and the rest for the right keys; `reward.check`, which is never trained on, also wants a value "
        "for each key, all of them different. GRPO (`dr_grpo`), 8 prompts with 8 samples a step.",
    ),
    "embeddings": (
        "Search with vectors",
        "Each question about hackers' slang must find, among the definitions of the Jargon File (public domain), the one "
        "that answers it. The encoder all-MiniLM-L6-v2 (Apache-2.0) is trained to give both similar "
        "[vectors](../../docs/guide-methods.md#vectors-for-search), and compared with BM25, with itself before training, "
        "and with both of them fused.",
    ),
    "distillation": (
        "A small adapter that learns from a large one",
        "The rows are every fifth of [sentiment](../sentiment). The [teacher](../../docs/guide-methods.md#from-a-local-teacher) "
        "is a run with an adapter of rank 64. The student, with an adapter of rank 4, learns the teacher's probabilities on "
        "the same rows. It is compared with the teacher, and with fine-tuning on these rows in as many steps.",
    ),
    "docs": (
        "Domain language from raw pages",
        "SQLite's documentation as plain text (public domain), without questions and answers. The metric is bits per "
        "byte of held-out pages: lower is better.",
    ),
}


def sample(run: Path, name: str) -> str:
    rows = [json.loads(x) for x in (run / "scores" / "tuned.jsonl").read_text(encoding="utf-8").splitlines()]
    if not rows[0]["messages"]:
        return ""
    row = rows[len(rows) // 2]
    question, reference, answer = row["messages"][-1]["content"], row["target"], row["answer"]
    lines = (
        f"question   {question}",
        *([f"reference  {reference}"] if reference else []),
        f"tuned      {answer}",
        f"score      {row['score']:.3f}",
    )
    return "One held-out row (the middle one) and its answer:\n\n````\n" + "\n".join(lines) + "\n````\n"


def unfinished(line: str) -> bool:
    """Whether this is a progress line, but not the last of its bar."""
    counts = re.search(r": (\d+)/(\d+) ", line)
    return counts is not None and counts[1] != counts[2]


def printed(run: Path, log: Path) -> list[str]:
    """The lines that a run printed, without progress lines and with paths relative to the runs folder."""
    lines = log.read_text(encoding="utf-8").splitlines()
    first = next((i for i, x in enumerate(lines) if x.startswith("data ")), 0)  # after what `make` printed
    kept = [
        x
        for x in lines[first:]
        if x.strip() and not x.startswith(("WARNING", "real", "user", "sys")) and not unfinished(x)
    ]
    return [line.replace(f"{run.parent}/", "runs/") for line in kept]


def arm_rows(verdict: dict[str, Any]) -> list[str]:
    """One table row per arm."""
    rows = []
    for name, arm in verdict["arms"].items():
        low, high = arm["interval"]
        other = ", ".join(f"{metric} {value:.3f}" for metric, value in arm["summary"].items())
        rows.append(f"| {name.replace('_', ' ')} | {arm['score']:.3f} | {low:.3f} to {high:.3f} | {other} |")
    return rows


def readme(name: str, run: Path, log: Path) -> str:
    title, introduction = INTRODUCTIONS[name]
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    (low, high), comparator = verdict["interval"], verdict["comparator"]["name"].replace("_", " ")
    return "\n".join(
        [
            f"# {title}",
            "",
            introduction,
            "",
            "```",
            f".venv/bin/python examples/{name}/make_data.py",
            *BEFORE.get(name, ()),
            f".venv/bin/tunewright run examples/{name}/config.yaml --name {name}",
            "```",
            "",
            f"| arm | {verdict['metric']} | 95% interval | other metrics |",
            "|---|---|---|---|",
            *arm_rows(verdict),
            "",
            f"**{verdict['verdict']}**: difference {verdict['difference']:+.3f} [{low:+.3f}, {high:+.3f}] from "
            f"{comparator} on {verdict['n']} held-out rows ({verdict['test']}).",
            "",
            sample(run, name),
            "Output (at most two cores, no GPU; progress lines omitted):",
            "",
            "```",
            *printed(run, log),
            "```",
            "",
            f"See the [report](../../docs/reports/{name}.html) of this run. Written by `scripts/example_readmes.py`.",
            "",
        ]
    )


def write_demo(run: Path, log: Path) -> None:
    """Replace the block of README.md that shows what the demo printed, without the lines of finished bars."""
    lines = [line for line in printed(run, log) if not re.search(r": (\d+)/\1 rows ", line)]
    file = EXAMPLES.parent / "README.md"
    before, _, rest = file.read_text(encoding="utf-8").partition(DEMO)
    _, _, after = rest.removeprefix("\n```\n").partition("\n```\n")
    block = "\n".join([DEMO, "```", *lines])
    file.write_text(f"{before}{block}\n```\n{after}", encoding="utf-8")


def main(root: Path, log: str) -> None:
    REPORTS.mkdir(exist_ok=True)
    for name in INTRODUCTIONS:
        run = root / name
        if not (run / "report.html").exists():
            print(f"{name}: no run, README unchanged")
            continue
        (EXAMPLES / name / "README.md").write_text(readme(name, run, Path(log.format(name))), encoding="utf-8")
        page = (run / "report.html").read_text(encoding="utf-8").replace(f" --runs {root}", "")
        page = page.replace(f"{root.resolve()}/", "runs/").replace(f"{root}/", "runs/")
        (REPORTS / f"{name}.html").write_text(page, encoding="utf-8")
        print(f"{name}: written")


if __name__ == "__main__":
    if sys.argv[1] == "--demo":
        write_demo(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])
