"""Print the lines of each folder of the package; exit with 1 if there are too many lines of code.

Lines of code are lines that are neither blank, nor a comment, nor part of a docstring.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tunewright"
# Lines of code. The formats and programs of other people are many small readers and writers, so what reads their data
# and what writes for their programs have budgets of their own. 13,000 were enough for all else until free text was
# judged by likelihood, by people and by judge models, and decoded in several ways; 15,000 until the plan predicted
# the time and memory of the whole run; 15,500 until training and planning knew packed weights, GPUs and several
# processes, whose own files have a budget of their own; 15,800 until the command line and the report knew sweeps;
# 16,000 until the base of another server was verified, too; 16,050 until rows could have two answers; 16,200 until
# adapters could continue from others, and rows could have no answer; 17,300 until processes with limits read files.
# Methods other than fine-tuning and distillation have a budget of their own, with their evidence. 3,000 were enough
# for the server without responses, batches, stored chats and a dashboard; 5,000 until vLLM could take the place of
# its engine; 5,700 until one batch did not wait for another, and a full disk or a refused process paused a job; 5,900
# until rows were read by processes with limits.
# For the methods, 3,000 were enough without vectors, encoders, tags, teachers, reward models and outside samplers;
# these also read other rows and write other folders; 5,700 until reward models could grade and students write.
BUDGET = {"server": 6_000, "data": 6_200, "export": 2_800, "scale": 2_500, "methods": 5_950, "all else": 17_450}
PROCESSES = ("stages/worker.py", "stages/process.py")
SEVERAL = ("model/several.py", "train/together.py")
RANKS = ("train/ranks.py", "train/dealing.py", "train/sharded.py")
BRANCHES = ("runtime/branches.py", "core/swept.py")
SWEEPS = ("stages/experiments/sweep.py", "judge/recipes.py", "core/records/sweep.py", "core/config/sweeps.py")
PARTS = {
    "server": ("server", "model/decoding/stack.py", "model/decoding/slots.py", "cli/serve.py"),
    "methods": (
        "methods/preference.py",
        "methods/pair_losses.py",
        "methods/pairs",
        "methods/kto.py",
        "model/adapting",
        "core/config/adapter_kinds.py",
        "methods/classify.py",
        "methods/regress.py",
        "methods/multilabel.py",
        "data/task/label_set.py",
        "data/task/ranking.py",
        "judge/arms/ranking.py",
        "judge/arms/headed.py",
        "data/numbers.py",
        "data/task/number.py",
        "model/heads",
        "export/classifier.py",
        "export/encoder_folder.py",
        "model/encoders",
        "tokens/encoder_text.py",
        "methods/tag.py",
        "data/task/tags.py",
        "data/task/tag_baselines.py",
        "export/tagger.py",
        "judge/arms/voting.py",
        "stages/experiments/fine_tuning.py",
        "methods/policy_losses.py",
        "methods/grpo.py",
        "model/decoding/sample.py",
        "train/sampling/rollouts.py",
        "train/sampling/preflight.py",
        "runtime/grading/rollouts.py",
        "core/records/rollouts.py",
        "judge/arms/best_of.py",
        "data/graders",
        "data/formats/unanswered.py",
        "data/formats/ratings.py",
        "core/config/method_settings.py",
        "methods/embed.py",
        "tokens/texts.py",
        "judge/search",
        "export/vectors.py",
        "data/task/corpus.py",
        "data/task/retrieval.py",
        "data/task/rewards.py",
        "stages/experiments/pairs.py",
        "stages/experiments/ratings.py",
        "stages/experiments/sft_alone.py",
        "stages/experiments/rewards.py",
        "report/templates/sections/rewards.html.j2",
        "judge/pass_at_k.py",
        "data/endpoints/token_sampler.py",
        "model/decoding/outside.py",
        "core/records/pairs.py",
        "report/templates/sections/pairs.html.j2",
        "methods/teaching.py",
        "data/remedies/synthetic.py",
        "data/remedies/answered.py",
        "judge/synthesis.py",
        "cli/rows",
        "stages/experiments/distillation.py",
        "report/templates/sections/distillation.html.j2",
    ),
    "data": ("data",),
    "export": ("export", "track"),
    "scale": (
        "model/attention/flex.py",
        "model/frozen",
        *RANKS,
        *SEVERAL,
        *PROCESSES,
        "fan",
        "cli/fan_out.py",
        "stages/experiments/sweep.py",
        *BRANCHES,
        *SWEEPS,
    ),
}
SUFFIXES = {".py", ".j2", ".html", ".css", ".js"}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(source: str) -> int:
    """The number of docstring lines that are not blank."""
    count = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            first = node.body[0]
            count += sum(bool(x.strip()) for x in source.splitlines()[first.lineno - 1 : first.end_lineno])
    return count


def code_lines(path: Path) -> int:
    source = path.read_text(encoding="utf-8")
    count = sum(bool(x.strip()) and not x.lstrip().startswith("#") for x in source.splitlines())
    return count - (docstring_lines(source) if path.suffix == ".py" else 0)


def main() -> None:
    code: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for path in sorted(p for p in PACKAGE.rglob("*") if p.suffix in SUFFIXES):
        name = path.relative_to(PACKAGE).as_posix()
        folder = next(
            (p for p in (*PARTS["scale"], *PARTS["server"][1:], *PARTS["methods"]) if name.startswith(p)),
            name.partition("/")[0],
        )
        code[folder] += code_lines(path)
        lines[folder] += path.read_text(encoding="utf-8").count("\n")
    print("   code    lines")
    for folder, count in code.most_common():
        print(f"{count:>7,}  {lines[folder]:>7,}  {folder}")
    parts = {part: sum(code[folder] for folder in folders) for part, folders in PARTS.items()}
    totals = {**parts, "all else": code.total() - sum(parts.values())}
    for part, limit in BUDGET.items():
        print(f"{totals[part]:>7,}           {part} (at most {limit:,})")
    sys.exit(any(totals[part] > limit for part, limit in BUDGET.items()))


if __name__ == "__main__":
    main()
