"""Write examples/*/README.md and docs/reports/*.html from the logs, verdicts and reports of real runs.

for e in addresses sentiment support docs; do
  tunewright run examples/$e/config.yaml --runs /tmp/examples --name $e > /tmp/examples-$e.log 2>&1; done
python scripts/example_readmes.py /tmp/examples /tmp/examples-{}.log
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
REPORTS = EXAMPLES.parent / "docs" / "reports"
TOLD = {
    "addresses": (
        "US addresses to JSON",
        "Structured extraction: 1,504 addresses labelled by hand (usaddress 0.5.16, MIT), 2 to 12 parts each. The "
        "zero-shot base does not know the fields, so few-shot is the arm to beat.",
    ),
    "sentiment": (
        "Sentiment of short texts",
        "Classification into positive, neutral and negative (VADER ground truth, MIT). Labels are scored by the "
        "log-probability of the whole answer. The constant answer and a TF-IDF classifier are arms too: look at them before you believe in a language model.",
    ),
    "support": (
        "A support assistant",
        "310 real questions and answers from the Python, Debian and SQLite FAQs; the retrieval arms look into the "
        "Python tutorial and HOWTOs and SQLite's pages. chrF tells whether the answer uses the words of the reference, not whether it is true. Read the verdict with the numbers beside it: the dev loss falls, so the model does learn how such answers sound, but a 135M model cannot know the facts, and chrF counts recall twice, which favours the base model's longer answers. A tool that only showed the loss curve would have called this a success.",
    ),
    "docs": (
        "Domain language from raw pages",
        "SQLite's documentation as plain text (public domain), no questions and answers. Bits per byte of held-out "
        "pages: lower is better.",
    ),
}


def sample(run: Path, name: str) -> str:
    rows = [json.loads(x) for x in (run / "scores" / "tuned.jsonl").read_text(encoding="utf-8").splitlines()]
    if not rows[0]["messages"]:
        return ""
    row = rows[len(rows) // 2]
    asked = row["messages"][-1]["content"]
    return f"One held-out row (the middle one), as answered:\n\n````\nasked    {asked}\nwanted   {row['target']}\ntuned    {row['answer']}\nscore    {row['score']:.3f}\n````\n"


def under_way(line: str) -> bool:
    """A progress line of something that is not finished."""
    found = re.search(r": (\d+)/(\d+) ", line)
    return found is not None and found[1] != found[2]


def main(root: Path, log: str) -> None:
    for name, (title, told) in TOLD.items():
        run = root / name
        if not (run / "report.html").exists():
            print(f"{name}: no run, left as it is")
            continue
        verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
        said = [
            line
            for line in Path(log.format(name)).read_text(encoding="utf-8").splitlines()
            if line.strip() and not line.startswith(("WARNING", "real", "user", "sys")) and not under_way(line)
        ]
        said = [line.replace(f"{root}/", "runs/") for line in said]
        arms = [
            f"| {a.replace('_', ' ')} | {d['score']:.3f} | {d['interval'][0]:.3f} to {d['interval'][1]:.3f} | "
            f"{', '.join(f'{k} {v:.3f}' for k, v in d['summary'].items())} |"
            for a, d in verdict["arms"].items()
        ]
        text = "\n".join(
            [
                f"# {title}",
                "",
                told,
                "",
                "```",
                f".venv/bin/python examples/{name}/make_data.py",
                f".venv/bin/tunewright run examples/{name}/config.yaml --name {name}",
                "```",
                "",
                f"| arm | {verdict['metric']} | 95 % interval | beside it |",
                "|---|---|---|---|",
                *arms,
                "",
                f"**{verdict['verdict']}**: difference {verdict['difference']:+.3f} [{verdict['interval'][0]:+.3f}, "
                f"{verdict['interval'][1]:+.3f}] to {verdict['comparator']['name'].replace('_', ' ')} on {verdict['n']} held-out rows ({verdict['test']}).",
                "",
                sample(run, name),
                "What it printed (two cores at most, no GPU; progress lines left out):",
                "",
                "```",
                *said,
                "```",
                "",
                f"The [report](../../docs/reports/{name}.html) of that run; both written by "
                "`scripts/example_readmes.py`.",
                "",
            ]
        )
        (EXAMPLES / name / "README.md").write_text(text, encoding="utf-8")
        page = (root / name / "report.html").read_text(encoding="utf-8")
        REPORTS.mkdir(exist_ok=True)
        (REPORTS / f"{name}.html").write_text(
            page.replace(f" --runs {root}", "").replace(f"{root.resolve()}/", "runs/").replace(f"{root}/", "runs/"),
            encoding="utf-8",
        )
        print(f"{name}: {verdict['verdict']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
