"""Training methods beside the trainers of TRL and transformers: the same rows, steps and initial adapter, in
alternating steps.

for e in preferences rewards; do python examples/$e/make_data.py; done
python benchmarks/methods.py [--only dpo kto grpo head] [--rounds 3] [--curve-steps 50] [--again]

Peers have the environment of peers.py. Writes results/methods.json and .md after every part; a part that was done with
as many rounds or steps is not repeated. Fails if loss curves disagree.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method_groups import GROUPS, REFERENCE_GFLOPS, Group, Timed
from method_tables import disagreeing, table
from peers import HERE, PEERS, environment
from subject import Subject, take_turns
from tables import OURS

from tunewright.system import machine
from tunewright.system.machine import Machine

TOO_SLOW = 3  # times as long as in float32
HOPELESS = 10  # times as long for a product: not tried


class Bench:
    """One group. ``folder``: for what its processes read and write."""

    def __init__(self, group: Group, folder: Path, here: Machine) -> None:
        from tunewright.model import loading
        from tunewright.tokens.template import load_template

        self.group, self.folder, self.here = group, folder, here
        self.model = loading.resolve("smollm2-135m")
        self.template = load_template(self.model)
        folder.mkdir()

    def setup(self, timed: Timed, name: str, more: Mapping[str, Any]) -> dict[str, Any]:
        place = re.sub(r"\W+", "-", f"{timed.description} {name}")
        file, folder, rows = self.folder / f"{place}.json", self.folder / place, timed.rows(self.template)
        file.write_text(json.dumps(rows))
        folder.mkdir(exist_ok=True)
        own = {"name": name, "batch": timed.batch, "rows": str(file), "folder": str(folder)}
        classes = len({r["class"] for r in rows if "class" in r})
        common = {"model": str(self.model), "threads": self.here.cores, "adapter": str(self.folder / f"of-{classes}")}
        return {**common, **self.group.common, **own, **more}

    def ours(self, timed: Timed, **more: Any) -> Subject:
        """tunewright, which also writes the adapter that the peer begins with, if there is none."""
        setup = self.setup(timed, OURS, {"layout": "shared", "dtype": self.here.dtype, **more})
        if not Path(setup["adapter"]).exists():
            setup["save_adapter"] = setup["adapter"]
        return Subject(Path(sys.executable), HERE / self.group.scripts[0], setup)

    def peer(self, timed: Timed, name: str, within: float | None = None) -> Subject:
        setup = self.setup(timed, name, self.group.settings[name])
        return Subject(PEERS, HERE / self.group.scripts[1], setup, within)

    def setting(self, name: str, before: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds until the peer is ready, and of a step in this setting, after a small one to warm up; or why there
        are none. ``before``: the same of other settings, those in float32 first."""
        if self.hopeless(name):
            speeds = f"{self.here.bf16_gflops:g} GFLOP/s in bf16, {self.here.fp32_gflops:g} in float32"
            return {"seconds": None, "why": f"dropped: products run at {speeds}"}
        most: dict[str, float | None] = {"start": None, "seconds": None}
        if self.in_bf16(name):
            for key in most:
                known = [b[key] for other, b in before.items() if not self.in_bf16(other) and b["seconds"]]
                most[key] = TOO_SLOW * min(known) if known else None
        subject = self.peer(self.group.workloads[self.group.tried], name, most["start"])
        seconds = subject.step(most["seconds"]).get("seconds")
        subject.end()
        if seconds is None:
            print(f"{name} has ended; its log: {subject.log}", file=sys.stderr)
            why = f"dropped: died, or over {TOO_SLOW} times as long as in float32" if most["seconds"] else "died"
            return {"seconds": None, "why": why}
        return {"seconds": seconds, "start": subject.start_seconds}

    def in_bf16(self, name: str) -> bool:
        """TRL's default."""
        return bool(self.group.settings[name]["settings"].get("bf16", True))

    def hopeless(self, name: str) -> bool:
        return self.in_bf16(name) and HOPELESS * self.here.bf16_gflops < self.here.fp32_gflops

    def adapter(self) -> None:
        """Have the adapter written that settings are tried with."""
        self.ours(self.group.workloads[self.group.tried]).end()

    def side_by_side(self, timed: Timed, best: str, rounds: int) -> dict[str, Any]:
        """Rounds of one step of each, in alternating order."""
        taken, ends = take_turns([self.ours(timed), self.peer(timed, best)], rounds)
        return {
            "seconds": {n: [t.get("seconds") for t in steps] for n, steps in taken.items()},
            "losses": {n: [t.get("loss") for t in steps] for n, steps in taken.items()},
            "peak_gb": {n: end.get("peak_gb") for n, end in ends.items()},
            "versions": {n: end.get("versions", {}) for n, end in ends.items()},
            "rounds": rounds,
            "best": best,
        }

    def curves(self, timed: Timed, steps: int) -> dict[str, Any]:
        """Losses in float32, one side after the other."""
        losses: dict[str, list[float]] = {}
        for start in (lambda: self.ours(timed, dtype="float32"), lambda: self.peer(timed, self.group.plain)):
            subject = start()
            taken = [subject.step() for _ in range(steps)]
            subject.end()
            if not all(taken):
                sys.exit(f"{subject.name} died; its log: {subject.log}")
            losses[subject.name] = [t["loss"] for t in taken]
        return {"losses": losses, "steps": steps}


@dataclass(frozen=True)
class Part:
    """A part of a group's results. ``kind``: settings, workloads or curves. ``seconds``: predicted. ``enough``: whether
    a stored part need not be repeated."""

    kind: str
    name: str
    seconds: float
    compute: Callable[[], dict[str, Any]]
    enough: Callable[[dict[str, Any]], bool] = bool


Stored = dict[str, dict[str, Any]]  # kind -> name -> what was measured


def parts(bench: Bench, stored: Stored, rounds: int, steps: int) -> list[Part]:
    """In the order in which they are computed; each reads those before it in ``stored``."""
    group, slower = bench.group, REFERENCE_GFLOPS / bench.here.fp32_gflops

    def setting(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: bench.setting(name, stored["settings"])

    def timed(workload: Timed) -> Callable[[], dict[str, Any]]:
        return lambda: bench.side_by_side(workload, best(stored["settings"]), rounds)

    made = []
    for name in sorted(group.settings, key=bench.in_bf16):
        predicted = 0.0 if bench.hopeless(name) else slower * group.seconds
        made.append(Part("settings", name, predicted, setting(name)))
    for name, workload in group.workloads.items():
        predicted = slower * (group.start + rounds * workload.seconds)
        made.append(Part("workloads", name, predicted, timed(workload), lambda row: row["rounds"] >= rounds))
    if steps and (curve := group.curve) is not None:
        predicted = slower * (group.start + steps * curve.seconds)
        compute = functools.partial(bench.curves, curve, steps)
        made.append(Part("curves", group.plain, predicted, compute, lambda c: c["steps"] >= steps))
    return made


def best(settings: Mapping[str, Any]) -> str:
    """The fastest setting."""
    timed = {name: s["seconds"] for name, s in settings.items() if s["seconds"]}
    if not timed:
        sys.exit("the peer works in no setting")
    return min(timed, key=timed.__getitem__)


def stored_in(out: Path, where: str) -> dict[str, Any]:
    """What an earlier call on this machine has written."""
    if not out.exists():
        return {"machine": where, "groups": {}}
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if result["machine"] != where:
        sys.exit(f"{out} has results of another machine, {result['machine']}: give another file with --out")
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curve-steps", type=int, default=50)
    parser.add_argument("--again", action="store_true", help="repeat parts that are done")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "methods.json")
    return parser.parse_args()


def main() -> None:
    asked, begun = arguments(), time.monotonic()
    environment()
    here, work = machine.measure(), Path(tempfile.mkdtemp(prefix="tunewright-methods-"))
    result = stored_in(asked.out, f"{here.cores} threads of {here.processor}")
    result["dtype"] = here.dtype

    def report(line: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {line}", file=sys.stderr, flush=True)

    for name in asked.only:
        stored: Stored = result["groups"].setdefault(name, {"settings": {}, "workloads": {}, "curves": {}})
        bench = Bench(GROUPS[name], work / name, here)
        due = parts(bench, stored, asked.rounds, asked.curve_steps)
        due = [p for p in due if asked.again or p.name not in stored[p.kind] or not p.enough(stored[p.kind][p.name])]
        report(f"{name}: {len(due)} parts, about {sum(p.seconds for p in due):.0f} s")
        if any(p.kind == "settings" for p in due):
            bench.adapter()
        for part in due:
            report(f"{name}, {part.kind}, {part.name}: about {part.seconds:.0f} s")
            start = time.monotonic()
            done = {**part.compute(), "gflops": here.fp32_gflops}
            stored[part.kind][part.name] = {**done, "took": round(time.monotonic() - start, 1)}
            report(f"  {done.get('seconds', '')} {done.get('why', '')}")
            asked.out.write_text(json.dumps(result, indent=1) + "\n")
            asked.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))
    if wrong := disagreeing(result):
        sys.exit(f"the loss curves differ by more than 1e-4: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
