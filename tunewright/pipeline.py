"""The story of a run, stage by stage; the only file that knows the order.

A stage reads what earlier stages left in the run folder and writes its own files there, so a run can be stopped anywhere and
continued by the same command, in another process. What is expensive to make is made once a process (`Session`).
"""

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tunewright import (
    adapters,
    card,
    checkpoints,
    dataset,
    evaluate,
    export,
    lean,
    loop,
    machine,
    models,
    profile,
    rendering,
    report,
    runs,
    statistics,
    systems,
    tokens,
)
from tunewright import plan as planning
from tunewright.config import Config, Plan, to_yaml
from tunewright.dataset import Dataset
from tunewright.errors import RunError
from tunewright.examples import Text
from tunewright.generate import How, stop_ids
from tunewright.methods import sft
from tunewright.metrics import HIGHER_IS_BETTER
from tunewright.models import Facts
from tunewright.rendering import Rendered, Template
from tunewright.runs import Run
from tunewright.talk import Talk


@dataclass
class Session:
    """One run in one process: what the stages share, each made when it is first asked for."""

    run: Run
    config: Config
    talk: Talk
    command: str
    model: Any = None
    base: Any = None

    @functools.cached_property
    def data(self) -> Dataset:
        return dataset.load(self.config)

    @functools.cached_property
    def facts(self) -> Facts:
        once = (
            " (a GGUF is converted once, some 20 s)"
            if self.config.model == models.EMBEDDED or self.config.model.endswith(".gguf")
            else ""
        )
        self.talk.say(f"model {self.config.model}: reading its facts, probing its layout{once}")
        return models.facts(self.config.model)

    @functools.cached_property
    def machine(self) -> machine.Machine:
        machine.keep_pages()
        return machine.look(None if self.config.threads == "auto" else self.config.threads)

    @functools.cached_property
    def template(self) -> Template:
        return rendering.load_template(Path(self.facts.path), self.config.template)

    @functools.cached_property
    def rendered(self) -> dict[str, list[Rendered]]:
        """Training sequences of every side; test is rendered too, so that a row that cannot be judged is known before training."""
        limit, _ = planning.max_length(self.config, self.facts, self.machine, self.data.task.kind)
        found, dropped = {}, []
        for side in ("train", "dev", "test"):
            drop = self.config.data.too_long == "drop"
            found[side], left_out = tokens.render_rows(
                self.template, self.data.examples, self.data.side(side), limit, drop, self.run.path / "data"
            )
            dropped += left_out
        if dropped:
            self.talk.warn(
                f"{len(dropped)} rows are over {limit} tokens and left out, as data.too_long=drop asks: {', '.join(self.data.examples[i].where for i in dropped[:5])}"
            )
            self.run.event("rows_left_out", rows=dropped, limit=limit)
        return found

    @functools.cached_property
    def plan(self) -> Plan:
        return Plan.model_validate(runs.read_json(self.run.plan))

    @property
    def hashes(self) -> dict[str, str]:
        """What the weights of a run depend on: checked at every stage and in every checkpoint."""
        fixed = self.plan.model_dump_json(exclude={"estimate", "reasons"})
        return {
            "data": self.data.sha256,
            "model": self.facts.sha256,
            "template": self.template.sha256,
            "plan": hashlib.sha256(fixed.encode()).hexdigest(),
        }

    def loaded(self) -> Any:
        """The model in the plan's dtype with a fresh adapter, on the machine's device."""
        if self.model is None:
            self.model = models.load(self.facts.path, models.torch_dtype(self.plan.dtype))
            adapters.attach(self.model, self.plan.adapter, self.plan.seed)
            self.model.to(self.machine.device)
            self.model.lean = self.facts.lean and lean.applies(self.model)
            if self.plan.recompute == "layers" and not self.model.lean:
                self.model.gradient_checkpointing_enable({"use_reentrant": False})
        return self.model

    def untrained(self) -> Any:
        """A second copy of the base model, for the arms beside a model all of whose weights were trained."""
        if self.base is None:
            self.base = models.load(self.facts.path, models.torch_dtype(self.plan.dtype)).to(self.machine.device)
        return self.base


def start(config: Config, name: str | None, root: Path, talk: Talk, command: str) -> Session:
    """A new run folder with its config."""
    # A run is continued from anywhere, so the paths in its config cannot be relative to here.
    data = {side: str(Path(p).resolve()) for side in ("train", "dev", "test") if (p := getattr(config.data, side))}
    own = {
        key: str(Path(p).resolve())
        for key in ("template", "model")
        if (p := getattr(config, key)) not in (None, models.EMBEDDED) and Path(p).exists()
    }
    config = config.model_copy(update={**own, "data": config.data.model_copy(update=data)})
    run = runs.create(root, name, Path(config.data.train).stem)
    runs.write_atomic(run.config, to_yaml(config))
    run.event("created", command=command)
    return Session(run, config, talk, command)


def advance(session: Session, until: str) -> None:
    """Run every stage up to ``until`` that the run folder does not hold yet."""
    if session.run.receipt.exists():
        _same_ground(session)
    for name, stage, done in STAGES:
        if not done(session.run):
            session.run.event(f"{name}_started")
            stage(session)
            session.run.event(f"{name}_finished")
        if name == until:
            return
    raise AssertionError(f"no stage {until}")


def check(session: Session) -> None:
    data, talk = session.data, session.talk
    counts = data.audit_json()["sides"]
    talk.say(
        f"data {Path(session.config.data.train).name}: {len(data.examples)} rows, form {data.form}, task {data.task.kind} ({data.task.reason}); "
        + ", ".join(f"{counts.get(s, 0)} {s}" for s in ("train", "dev", "test"))
    )
    if not counts.get("dev"):
        talk.warn("  no row fell to dev: there is no early stopping, and the last weights are kept")
    for finding in data.audit.findings:
        (talk.warn if finding.level == "warning" else talk.say)(f"  {finding.level} {finding.code}: {finding.message}")
    runs.write_json(session.run.audit, data.audit_json())
    runs.write_lines(session.run.split, data.split_json())


def plan(session: Session) -> None:
    """Resolve every auto, calibrate, write the receipt and the plan (last, because it says that this stage is whole)."""
    rendered = session.rendered
    made = planning.make(
        session.config, session.facts, planning.Sizes.of(rendered["train"]), session.machine, session.data.task.kind
    )
    session.plan = made
    model = session.loaded()
    speed, count = loop.calibrate(model, sft, rendered["train"], made)
    session.plan = planning.with_estimate(made, speed, machine.peak_gb(), count)
    say, estimate = session.talk.say, session.plan.estimate
    assert estimate is not None
    rank = f" rank {made.adapter.rank}" if made.adapter.kind != "none" else ""
    kind = f"{made.dtype}, {made.layout}, {made.adapter.kind}{rank}"
    say(f"plan: {made.steps} steps of {made.batch} rows ({made.epochs:g} epochs), rate {made.lr:g}, {kind}")
    say(f"      about {estimate.train_seconds:.0f} s of training at {speed:.0f} tokens/s, {estimate.peak_gb:.1f} GB")
    if session.data.task.metric in ("accuracy", "exact_match"):
        judged = len(session.data.judged(session.config.prove.max_rows))
        points = 100 * statistics.detectable(judged)
        say(f"      {judged} test rows can show differences of about {points:.0f} points, if the arms disagree on 30 % of them")
    runs.write_json(session.run.receipt, _receipt(session))
    runs.write_json(session.run.plan, session.plan.model_dump())


def profiled(session: Session) -> profile.Profile:
    """A few steps, watched; the weights are put back. Written to profile.json."""
    found = profile.measure(
        session.loaded(),
        sft,
        session.rendered["train"],
        session.plan,
        max(session.machine.fp32_gflops, session.machine.bf16_gflops),
    )
    runs.write_json(session.run.path / "profile.json", found.to_json())
    return found


def train(session: Session) -> None:
    model, plan, run = session.loaded(), session.plan, session.run
    run.checkpoints.mkdir(mode=0o700, exist_ok=True)
    before = checkpoints.whole(run.checkpoints)
    done = int(before[-1].name.removeprefix("step-")) if before else 0
    if done:
        session.talk.say(f"going on after step {done}, from {before[-1]}")
    rendered = session.rendered
    with session.talk.bar("train", plan.steps, done) as note:

        def watch(p: loop.Progress) -> None:
            dev = f" dev {p.dev_loss:.3f}" if p.dev_loss is not None else ""
            note(1, f"loss {p.loss:.3f}{dev} {p.tokens / max(p.seconds, 1e-9):.0f} tok/s")

        result = loop.train(model, sft, rendered["train"], rendered["dev"], plan, run, session.hashes, watch)
    parameters = adapters.trainable(model)
    checkpoints.save_weights(run.checkpoints / "final.safetensors", parameters)
    count = sum(p.numel() for p in parameters.values())
    total = sum(p.numel() for p in model.parameters())
    runs.write_json(run.training, {**asdict(result), "peak_gb": round(machine.peak_gb(), 2), "trained": count, "total": total})
    early = f", stopped early after step {result.steps}" if result.stopped_early else ""
    if result.best_dev_loss is not None:
        session.talk.say(
            f"trained: dev loss {result.first_dev_loss:.3f} -> {result.best_dev_loss:.3f} (step {result.best_step}){early}, {result.seconds:.0f} s"
        )


def prove(session: Session) -> None:
    """The untrained arms answer dev, which chooses the comparator; then every arm answers test, which claims; the verdict."""
    config, data, task, run = session.config, session.data, session.data.task, session.run
    model = session.loaded()
    checkpoints.load_weights(run.checkpoints / "final.safetensors", adapters.trainable(model))
    how = decoding(session, model)
    train_rows = [e for i in data.side("train") if not isinstance(e := data.examples[i], Text)]
    arms = systems.arms(task, train_rows, config.prove.shots)
    dev = data.judged(config.prove.max_rows, "dev")
    untrained = [arm for arm in arms if not arm.adapter]
    on_dev = {arm.name: answered(session, arm, dev, how, "dev_")["score"] for arm in untrained if dev and len(untrained) > 1}
    rows = data.judged(config.prove.max_rows)
    run.event("test_read", rows=len(rows))
    found = {arm.name: answered(session, arm, rows, how) for arm in arms}
    verdict = decide(found, on_dev, task.metric, [data.cluster[i] for i in rows], config.prove.margin, config.prove.alpha)
    reads = sum(e["event"] == "test_read" for e in runs.read_lines(run.events))
    facts = {"task": task.kind, "max_new_tokens": how.max_new_tokens, "test_reads": reads, "dev_rows": len(dev)}
    runs.write_json(run.verdict, {**verdict, **facts})
    say = session.talk.say
    say(
        f"{verdict['verdict']}: {task.metric} tuned {verdict['tuned']:.3f}, {verdict['comparator']['name']} {verdict['comparator']['score']:.3f}, difference {verdict['difference']:+.3f} [{verdict['interval'][0]:+.3f}, {verdict['interval'][1]:+.3f}] on {verdict['n']} rows",
        "bold",
    )


def answered(session: Session, system: systems.System, rows: list[int], how: How, side: str = "") -> dict[str, Any]:
    """What an arm did on these rows, and its scores one by one; a line a row in scores/."""
    data, task, model = session.data, session.data.task, session.loaded()
    if session.plan.adapter.kind == "none" and not system.adapter:
        model = session.untrained()
    begun = time.monotonic()
    chosen = [data.examples[i] for i in rows]
    with session.talk.bar(f"{side}{system.name}".replace("_", " "), len(chosen)) as note:
        told = functools.partial(note, words="rows")
        scores = evaluate.judge(model, system, chosen, task, session.template, how, session.plan, told)
    lines = [{"row": i, **s} for i, s in zip(rows, scores, strict=True)]
    runs.write_lines(session.run.scores / f"{side}{system.name}.jsonl", lines)
    each = [s["score"] for s in scores]
    return {
        "description": system.description,
        "scores": each,
        "score": sum(each) / len(each),
        "summary": evaluate.summary(task, scores),
        "seconds": round(time.monotonic() - begun, 1),
        "prompt_tokens": round(sum(s.get("prompt_tokens", 0) for s in scores) / len(scores), 1),
    }


def decide(
    arms: dict[str, dict[str, Any]], on_dev: dict[str, float], metric: str, clusters: list[int], margin: float, alpha: float
) -> dict[str, Any]:
    """verdict.json from the arms' scores on test: tuned against the untrained arm that was best on dev. Where no dev row chose,
    it is the best on these very rows, which favours that arm."""
    higher = HIGHER_IS_BETTER[metric]
    bound = 1.0 if higher else 16.0
    means = {name: arm["score"] for name, arm in arms.items()}
    other = (max if higher else min)(on_dev or (n for n in arms if n != "tuned"), key=(on_dev or means).__getitem__)
    compared = statistics.compare(
        arms["tuned"]["scores"], arms[other]["scores"], clusters, margin=margin, alpha=alpha, higher_is_better=higher, bound=bound
    )
    shown = {}
    for name, arm in arms.items():
        interval = statistics.mean_interval(arm["scores"], clusters, alpha, bound)
        shown[name] = {**{k: v for k, v in arm.items() if k != "scores"}, "interval": list(interval)}
    facts = compared.to_json()
    facts["n"] = facts.pop("rows")
    return {
        "metric": metric,
        "tuned": means["tuned"],
        "comparator": {"name": other, "score": means[other], "chosen_on": "dev" if on_dev else "test", "on_dev": on_dev},
        "arms": shown,
        **facts,
    }


def decoding(session: Session, model: Any) -> How:
    """The one way in which all arms answer: greedy, a quarter longer than the longest training answer. Raw text is not answered."""
    asked = session.config.prove.max_new_tokens
    longest = max(r.supervised for r in session.rendered["train"])
    limit = asked if asked != "auto" else min(512, longest + longest // 4 + 8)
    facts = session.facts
    return How(
        limit,
        stop_ids(model, session.template.eos),
        planning.judged_together(session.config, facts, session.plan, session.machine, limit),
        facts.packable,
        facts.window,
    )


def leave(session: Session) -> None:
    """Export, reload, compare; then the cards."""
    data = session.data
    rows = data.judged(export.CANARIES)
    if data.task.kind == "text":
        canaries = [list(next(r.ids for r in session.rendered["test"] if r.row == i))[:128] for i in rows]
    else:
        canaries = [
            rendering.for_generation(session.template, e.prompt) for i in rows if not isinstance(e := data.examples[i], Text)
        ]
    session.talk.say("export: writing, reloading in a fresh process, comparing")
    stop = stop_ids(session.loaded(), session.template.eos)
    for done in export.export(session.run, session.config, session.plan, session.facts, session.template, canaries, stop):
        session.talk.say(
            f"  {done.kind}: largest logit difference {done.largest_difference:.1e}, {done.same_texts} of {done.canaries} greedy texts equal; {done.path}"
        )
    card.write(session.run)


def tell(session: Session) -> None:
    report.write(session.run)


STAGES: tuple[tuple[str, Callable[[Session], None], Callable[[Run], bool]], ...] = (
    ("check", check, lambda run: run.split.exists()),
    ("plan", plan, lambda run: run.plan.exists()),
    ("train", train, lambda run: run.training.exists()),
    ("prove", prove, lambda run: run.verdict.exists()),
    ("export", leave, lambda run: run.export.exists()),
    ("report", tell, lambda run: run.report.exists()),
)


def _same_ground(session: Session) -> None:
    """Raises RESUME_MISMATCH, field by field, when data, model, template or plan are not those that the run began with."""
    before = runs.read_json(session.run.receipt)["hashes"]
    now = session.hashes if session.run.plan.exists() else {}
    changed = [k for k in now if now[k] != before.get(k)]
    if changed:
        detail = "; ".join(f"{k} was {before.get(k, '')[:12]}, is {now[k][:12]}" for k in changed)
        raise RunError(
            "RESUME_MISMATCH",
            f"the run began on other ground: {detail}.",
            where=str(session.run.path),
            mend="put it back as it was, or start a new run.",
        )


def _receipt(session: Session) -> dict[str, Any]:
    packages = ("tunewright", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    facts = session.facts
    return {
        "command": session.command,
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
        "hashes": {
            **session.hashes,
            "code": code.hexdigest(),
            "config": hashlib.sha256(session.run.config.read_bytes()).hexdigest(),
        },
        "model": facts.to_json(),
        "template": {"kwargs": session.template.kwargs, "note": session.template.reason},
        "machine": session.machine.to_json(),
        "seed": session.config.seed,
        "threads": torch.get_num_threads(),
        "instruction": session.data.instruction,
    }
