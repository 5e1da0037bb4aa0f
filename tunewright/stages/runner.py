"""The story of a run, stage by stage; the only file that knows the order.

A stage reads what earlier stages left in the run folder and writes its own files there, so a run can be stopped anywhere and
continued by the same command, in another process. What is expensive to make is made once a process (`Session`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunewright.core import run_folder
from tunewright.core.config import Config, Plan, absolute, to_yaml
from tunewright.core.console import Console
from tunewright.core.errors import RunError, TrainError, TunewrightError
from tunewright.core.run_folder import Run
from tunewright.data.dataset import Dataset
from tunewright.data.examples import Text
from tunewright.export import card, export
from tunewright.export.kind import Source
from tunewright.methods import sft
from tunewright.model import adapters
from tunewright.model.generate import stop_ids
from tunewright.report import report
from tunewright.run.session import Session
from tunewright.stages import clean, cost, crossfit, forget, learning_curve, mitigate, prompt_distillation, prove
from tunewright.tokens import rendering
from tunewright.tokens.rendering import Rendered
from tunewright.train import checkpoints, loop, machine, planning, profile, selftest


def start(config: Config, name: str | None, root: Path, talk: Console, command: str) -> Session:
    """A new run folder with its config. Raises RUN_INSIDE_DATA where its own texts would become documents."""
    config = absolute(config)
    for folder in (config.data.train, config.data.dev, config.data.test, config.prove.documents):
        if folder and Path(folder).is_dir() and root.resolve().is_relative_to(Path(folder).resolve()):
            raise RunError(
                "RUN_INSIDE_DATA",
                f"the runs folder lies in {folder}, whose documents are read: model cards of runs would be among them.",
                where=str(root),
                fix="put it elsewhere: --runs FOLDER.",
            )
    if config.date == "auto":  # tomorrow the run goes on with today's prompts
        config = config.model_copy(update={"date": datetime.date.today().isoformat()})
    run = run_folder.create(root, name, Path(config.data.train).stem)
    run_folder.write_atomic(run.config, to_yaml(config))
    run.event("created", command=command)
    return Session(run, config, talk, command)


def launch(
    config: Config, name: str | None, root: Path, talk: Console, command: str, until: str, data: Dataset | None = None
) -> Session:
    """A new run up to ``until``. Where a mistake of the user ends it before there is a plan, no folder is left."""
    first = not root.exists()
    session = start(config, name, root, talk, command)
    if data is not None:
        session.data = data
    try:
        advance(session, until)
    except TunewrightError as error:
        if error.exit_code == 2 and not session.run.plan.exists():
            shutil.rmtree(session.run.path)
            with suppress(OSError):  # another process may have put a run there
                if first:
                    root.rmdir()
        raise
    return session


def advance(session: Session, until: str) -> None:
    """Run every stage up to ``until`` that the run folder does not hold yet. Raises RUN_LOCKED while another process does."""
    assert until in [name for name, _, _ in STAGES]
    with run_folder.writing(session.run):
        if session.run.receipt.exists():
            _same_ground(session)
        for name, stage, done in STAGES:
            with _met(session.run, name):  # its events too: each waits for the disk
                if not done(session.run):
                    session.run.event(f"{name}_started")
                    stage(session)
                    session.run.event(f"{name}_finished")
            if name == until:
                return


@contextmanager
def _met(run: Run, stage: str) -> Iterator[None]:
    """What can end a stage from outside, told as an error of ours; whatever earlier stages wrote is whole."""
    try:
        yield
    except KeyboardInterrupt:
        raise TrainError(
            "TRAIN_INTERRUPTED",
            f"stopped during `{stage}`; what was done before is kept.",
            where=str(run.path),
            fix=f"`tunewright run {run.path}` goes on from there.",
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not machine.out_of_memory(error):
            raise
        raise TrainError(
            "TRAIN_MEMORY",
            f"out of memory during `{stage}`, with {machine.peak_gb():.1f} GB in use at most.",
            where=str(run.path),
            fix="close other programs and run it again; or begin a run with train.gradient_checkpointing=layers, a smaller train.tokens_per_pass, or a smaller model.",
        ) from None


def check(session: Session) -> None:
    data, talk = session.data, session.talk
    counts = {side: len(data.side(side)) for side in ("train", "dev", "test")}
    talk.say(
        f"data {Path(session.config.data.train).name}: {len(data.examples)} rows, form {data.format}, task {data.task.kind.name} ({data.task.reason}); "
        + ", ".join(f"{n} {s}" for s, n in counts.items())
    )
    if data.unused:
        talk.say("  fields that nothing reads: " + ", ".join(f"{k} ({n} rows)" for k, n in data.unused.items()))
    if not counts["dev"]:
        talk.warn("  no row fell to dev: there is no early stopping, and the last weights are kept")
    for finding in data.findings():
        (talk.warn if finding.level == "warning" else talk.say)(f"  {finding.level} {finding.code}: {finding.message}")
    run_folder.write_json(session.run.audit, data.audit_json())
    run_folder.write_lines(session.run.split, data.split_json())


def plan(session: Session) -> None:
    """Resolve every auto, calibrate, write the receipt and the plan (last, because it says that this stage is whole)."""
    rendered = session.rendered
    made = planning.make(
        session.config, session.facts, planning.RowStats.of(rendered["train"]), session.machine, session.data.task.kind.name
    )
    session.plan = made
    session.plan = made = _tested(session)
    speed, count = loop.calibrate(session.loaded(), sft, rendered["train"], made)
    session.plan = planning.with_estimate(made, speed, machine.peak_gb(), count)
    say, estimate = session.talk.say, session.plan.estimate
    assert estimate is not None
    rank = f" rank {made.adapter.rank}" if made.adapter.kind != "none" else ""
    kind = f"{made.dtype}, {made.layout}, {made.adapter.kind}{rank}"
    say(f"plan: {made.steps} steps of {made.batch_size} rows ({made.epochs:g} epochs), rate {made.lr:g}, {kind}")
    say(f"      about {estimate.train_seconds:.0f} s of training at {speed:.0f} tokens/s, {estimate.peak_gb:.1f} GB")
    protocol = session.protocol
    if protocol.detectable is not None:
        points = 100 * protocol.detectable
        told = f"differences of about {points:.0f} points" if points < 99 else "no difference with certainty"
        say(f"      {protocol.test_rows} test rows can show {told}, if {protocol.assumed}")
    _write_plan(session)


def _write_plan(session: Session) -> None:
    run_folder.write_json(session.run.protocol, asdict(session.protocol))
    run_folder.write_json(session.run.receipt, _receipt(session))
    run_folder.write_json(session.run.plan, session.plan.model_dump())


def settle(session: Session, plan: Plan) -> None:
    """In place of the stage `plan`: this very plan, of another run. Nothing is measured; the self-test is made."""
    with run_folder.writing(session.run):
        session.plan = plan
        session.plan = _tested(session)
        _write_plan(session)


def _tested(session: Session) -> Plan:
    """The self-test; its plan, which may be a slower one."""
    rows = session.rendered["train"]
    plan, found, seconds = selftest.run(session.loaded(), session.template, session.data.examples, rows, session.plan)
    for finding in found:
        if not finding.held:
            session.talk.warn(f"  self-test: {finding.told}")
    session.model = replace(session.loaded(), kernels=plan.kernels)
    run_folder.write_json(session.run.selftest, {"seconds": seconds, "findings": [asdict(f) for f in found]})
    held = sum(f.held for f in found)
    session.talk.say(f"self-test: {held} of {len(found)} properties hold on rows of this run ({seconds:.0f} s)")
    return plan


def profiled(session: Session) -> profile.Profile:
    """A few steps, watched; the weights are put back. Written to profile.json."""
    found = profile.measure(
        session.loaded(),
        sft,
        session.rendered["train"],
        session.plan,
        max(session.machine.fp32_gflops, session.machine.bf16_gflops),
    )
    with run_folder.writing(session.run):
        run_folder.write_json(session.run.path / "profile.json", found.to_json())
    return found


def measured_again(session: Session, full: bool) -> None:
    """The curve by itself, and the report with it where there is one."""
    with run_folder.writing(session.run):
        learning_curve.curve(session, full)
        if session.run.report.exists():
            tell(session)


def train(session: Session) -> None:
    model, plan, run = session.loaded(), session.plan, session.run
    run.checkpoints.mkdir(mode=0o700, exist_ok=True)
    before, damaged = checkpoints.newest(run.checkpoints)
    done = int(before.name.removeprefix("step-")) if before else 0
    for what in damaged:
        run.event("checkpoint_damaged", what=what)
        session.talk.warn(f"damaged checkpoint {what}; an older one, or the start, is taken")
    if done:
        session.talk.say(f"going on after step {done}, from {before}")
    rendered = session.rendered
    with session.talk.bar("train", plan.steps, done) as note:

        def watch(p: loop.Progress) -> None:
            dev = f" dev {p.dev_loss:.3f}" if p.dev_loss is not None else ""
            note(1, f"loss {p.loss:.3f}{dev} {p.tokens / max(p.seconds, 1e-9):.0f} tok/s")

        result = loop.train(model, sft, rendered["train"], rendered["dev"], plan, run, session.hashes, watch)
    parameters = adapters.trainable(model.module)
    written = checkpoints.save_weights(run.weights, parameters)
    count = sum(p.numel() for p in parameters.values())
    total = sum(p.numel() for p in model.module.parameters())
    facts = {"peak_gb": round(machine.peak_gb(), 2), "trained": count, "total": total, "weights_sha256": written}
    run_folder.write_json(run.training, {**asdict(result), **facts})
    early = f", stopped early after step {result.steps}" if result.stopped_early else ""
    if result.best_dev_loss is not None:
        session.talk.say(
            f"trained: dev loss {result.first_dev_loss:.3f} -> {result.best_dev_loss:.3f} (step {result.best_step}){early}, {result.seconds:.0f} s"
        )


def leave(session: Session) -> None:
    """Export, reload, compare; then the cards."""
    data = session.data
    rows = data.sample(export.CANARIES)
    if not data.task.kind.prompted:
        canaries = [list(next(r.ids for r in session.rendered["test"] if r.row == i))[:128] for i in rows]
    else:
        canaries = [
            rendering.for_generation(session.template, e.prompt) for i in rows if not isinstance(e := data.examples[i], Text)
        ]
    session.talk.say("export: writing, reloading in a fresh process, comparing")
    stop = stop_ids(session.loaded(), session.template.eos)
    source = Source(session.run, session.config, session.plan, session.facts, session.template)
    for done in export.export(source, canaries, stop):
        session.talk.say(
            f"  {done.kind}: largest logit difference {done.largest_difference:.1e}, {done.same_texts} of {done.canaries} greedy texts equal; {done.path}"
        )
    card.write(session.run)


def half(session: Session) -> None:
    """The two-point curve is part of the full evidence."""
    if session.config.prove.evidence == "full":
        learning_curve.curve(session, full=False)


def tell(session: Session) -> None:
    """verdict.json gets what later stages found, so that it holds every number; then the page."""
    run = session.run
    found = {name: run_folder.read_json(file) for name, file in run.evidence.items() if file.exists()}
    reads = sum(e["event"] == "test_read" for e in run_folder.read_lines(run.events))
    run_folder.write_json(run.verdict, {**run_folder.read_json(run.verdict), **found, "test_reads": reads})
    report.write(run)


STAGES: tuple[tuple[str, Callable[[Session], None], Callable[[Run], bool]], ...] = (
    ("check", check, lambda run: run.split.exists()),
    ("plan", plan, lambda run: run.plan.exists()),
    ("train", train, lambda run: run.training.exists()),
    ("forget", forget.forget, lambda run: run.forgetting.exists()),
    ("prove", prove.prove, lambda run: run.verdict.exists()),
    ("crossfit", crossfit.crossfit, lambda run: run.crossfit.exists()),
    ("clean", clean.clean, lambda run: run.cleaning.exists()),
    ("mitigate", mitigate.mitigate, lambda run: run.mitigation.exists()),
    ("internalise", prompt_distillation.internalise, lambda run: run.internalised.exists()),
    ("curve", half, lambda run: run.curve.exists()),
    ("cost", cost.cost, lambda run: run.cost.exists()),
    ("export", leave, lambda run: run.export.exists()),
    ("report", tell, lambda run: run.report.exists()),
)


def _same_ground(session: Session) -> None:
    """Raises RESUME_MISMATCH, field by field, when data, model, template or plan are not those that the run began with. Another
    version, processor or number of threads may go on, and is said: the result is then not bit for bit that of one process."""
    if not session.run.plan.exists():
        return
    receipt = run_folder.read_json(session.run.receipt)
    before = receipt["hashes"]
    now = {**session.hashes, "protocol": session.protocol.sha256}
    changed = [k for k in now if now[k] != before.get(k)]
    if changed:
        detail = "; ".join(f"{k} was {before.get(k, '')[:12]}, is {now[k][:12]}" for k in changed)
        if "protocol" in changed:
            then, today = run_folder.read_json(session.run.protocol), json.loads(json.dumps(asdict(session.protocol)))
            parts = [f"{k} was {then.get(k)}, is {today[k]}" for k in today if today[k] != then.get(k)]
            detail += f" ({'; '.join(parts)})"
        raise RunError(
            "RESUME_MISMATCH",
            f"the run began on other ground: {detail}.",
            where=str(session.run.path),
            fix="put it back as it was, or start a new run.",
        )
    ground = {**_versions(), "code": _code(), "processor": session.machine.processor, "threads": session.machine.cores}
    began = {
        **receipt["versions"],
        "code": before["code"],
        "processor": receipt["machine"]["processor"],
        "threads": receipt["threads"],
    }
    others = [f"{k} was {str(began[k])[:12]}, is {str(ground[k])[:12]}" for k in ground if ground[k] != began.get(k)]
    if others:
        session.run.event("went_on_elsewhere", what=others)
        session.talk.warn(f"  the run began elsewhere: {'; '.join(others)}; what follows may differ in the last bits")


def _receipt(session: Session) -> dict[str, Any]:
    facts = session.facts
    return {
        "command": session.command,
        "versions": _versions(),
        "hashes": {
            **session.hashes,
            "protocol": session.protocol.sha256,
            "code": _code(),
            "config": run_folder.sha256(session.run.config),
        },
        "model": facts.to_json(),
        "template": {"kwargs": session.template.kwargs, "note": session.template.reason, "day": str(session.template.day or "")},
        "machine": session.machine.to_json(),
        "seed": session.config.seed,
        "threads": torch.get_num_threads(),
        "instruction": session.data.instruction,
        "lengths": {side: _lengths(rows) for side, rows in session.rendered.items() if rows},
    }


def _versions() -> dict[str, str]:
    packages = ("tunewright", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}}


def _code() -> str:
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def _lengths(rendered: list[Rendered]) -> dict[str, float]:
    """Tokens of the rows under the model's own template, and of what is learned of them; no row is cut in the middle."""
    whole, learned = [len(r.ids) for r in rendered], [r.supervised for r in rendered]
    told = {
        f"{name}_{what}": float(np.percentile(x, p))
        for what, p in (("median", 50), ("p95", 95), ("longest", 100))
        for name, x in (("tokens", whole), ("learned", learned))
    }
    return {"rows": len(rendered), **told}
