"""Runs the stages that a run folder does not contain yet. A run can be stopped anywhere and continued by the same
command, in another process; what is expensive to make (facts, rendered rows, a loaded model) is made once per
process."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tunewright.core import records, run_folder
from tunewright.core.config import Config, Plan, absolute, flat, load, to_yaml
from tunewright.core.console import Console
from tunewright.core.errors import ConfigError, DataError, RunError, TrainError, TunewrightError
from tunewright.core.locations import listed, searched_folder, title
from tunewright.core.records import CONSUMER_CHECKS, EXPORTS, Audit, ConsumerCheck, ExportCheck, NotMeasured, Profile
from tunewright.core.run_folder import Run
from tunewright.data import dataset
from tunewright.data.dataset import Dataset
from tunewright.data.remedies.prepared import SIDES, pinned
from tunewright.data.task import rewards
from tunewright.export import card, export, portable, unchanged
from tunewright.export.consumers.openai_server import Server
from tunewright.export.kind import Dtype, TrainedRun
from tunewright.runtime import inputs, receipt, verification
from tunewright.runtime.answers import Answers
from tunewright.runtime.context import Context, Setup, Work
from tunewright.runtime.grading import reward_models, rollouts
from tunewright.runtime.models import Models
from tunewright.stages import STAGES
from tunewright.stages.experiments import learning_curve
from tunewright.stages.export import check_prompts
from tunewright.stages.plan import adopt, protocol_of
from tunewright.stages.report import write as write_report
from tunewright.stages.stage import Result, Stage
from tunewright.system import crowding, heap, machine
from tunewright.track import follow
from tunewright.train import profile


class Runner:
    """One run in one process, with the inputs of its stages, each made when first needed."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._setup: Setup | None = None
        self._work: Work | None = None

    def setup(self) -> Setup:
        if self._setup is None:
            context = self.context
            if not context.run.plan.exists():
                rollouts.require_sampler(context.config)
            context.console.say(inputs.loading_message(context.config))
            gathered = inputs.gather(context.config, context.run, context.data)
            self._setup = Setup(context, gathered, Models(gathered.facts, gathered.machine.device))
        return self._setup

    def work(self) -> Work:
        """The inputs of the stages after `plan`."""
        if self._work is None:
            setup, context = self.setup(), self.context
            plan = records.read(context.run.plan, Plan)
            answers = Answers(context.run, context.console, context.data, setup.inputs, plan, setup.models)
            self._work = Work(setup, plan, protocol_of(setup), answers)
        return self._work

    def advance(self, until: str) -> None:
        """Run every stage up to ``until`` that is not done. Raises RUN_LOCKED while another process writes the run
        folder."""
        assert until in [stage.name for stage in STAGES]
        run = self.context.run
        with crowding.giving_way(), _remove_folder_on_user_error(self.context), run_folder.writing(run):
            if run.plan.exists():
                self._check_inputs()
            elif run.split.exists() and records.read(run.audit, Audit).sha256 != self.context.data.sha256:
                run.split.unlink()  # the data was changed before there was a plan: it is audited again
            self._store_settings()
            if (
                self.context.where.agreed
            ):  # for good: a run that is killed before its first step is not asked about again
                run.event(records.AGREED)
            with follow.following(run, self.context.config.track, self.context.console):
                self._advance(until)

    def _advance(self, until: str) -> None:
        run = self.context.run
        for stage in STAGES:
            with error_codes(run, stage.name):  # includes writing the events, which waits for the disk
                if not stage.file(run).exists():
                    run.event(f"{stage.name}_started")
                    self._do(stage)
                    heap.release()
                    run.event(f"{stage.name}_finished", process_peak_gb=round(machine.peak_gb(), 2))
            if stage.name == until:
                return

    def _store_settings(self) -> None:
        """Of a run that is continued with others, once it is known that they can be met. After others of exports,
        exports and report are written again."""
        context = self.context
        if not context.new_settings:
            return
        exports = load(context.run.config).export != context.config.export
        if exports and context.run.plan.exists():
            work = self.work()
            export.require_supported(
                TrainedRun(work.run, work.config, work.plan, work.inputs.facts, work.inputs.template)
            )
        run_folder.write_atomic(context.run.config, to_yaml(context.config))
        context.run.event("new_settings", settings=list(context.new_settings))
        if exports:
            if context.run.export.exists():
                context.run.export.replace(unchanged.earlier(context.run))
            context.run.report.unlink(missing_ok=True)

    def adopt(self, plan: Plan) -> None:
        """Instead of planning, take over the plan of another run."""
        with run_folder.writing(self.context.run):
            records.write(self.context.run.plan, adopt(self.setup(), plan))

    def profile(self) -> Profile:
        """Run a few steps under torch's profiler, and undo their effect. Writes profile.json."""
        work = self.work()
        hardware = work.inputs.machine
        peak = max(hardware.fp32_gflops, hardware.bf16_gflops)
        times = profile.measure(work.models.untrained(work.plan), work.inputs.rows["train"], work.plan, peak)
        with run_folder.writing(self.context.run):
            records.write(self.context.run.path / "profile.json", times)
        return times

    def learning_curve(self, full: bool) -> None:
        """Run the learning curve alone, and update the report if there is one."""
        run = self.context.run
        with crowding.giving_way(), run_folder.writing(run):
            curve = learning_curve.learning_curve(self.work(), full)
            records.write(run.learning_curve, curve)
            self._print(learning_curve.STAGE, curve)
            if run.report.exists():
                write_report(run)

    def verify(self, server: Server, served: ExportCheck | None, dtype: Dtype | None) -> ConsumerCheck:
        """Check a program that serves the run's model, and update the cards and the report. ``served``: the export;
        None: the one whose files it names. ``dtype``: None for that of the export."""
        work, run = self.work(), self.context.run
        require_writer(work.plan)
        with run_folder.writing(run):
            self._check_inputs()
        exports = records.read(run.export, EXPORTS)
        served = served or verification.served(run, exports, server)
        path, dtype = served.relative_path if served else None, dtype or verification.stored_dtype(served)
        with crowding.giving_way():  # the server that is asked may use the same cores
            check = verification.check(work, check_prompts(work), server, path, dtype)
        with run_folder.writing(run):
            before = records.existing(run.verify, CONSUMER_CHECKS) or ()
            others = [c for c in before if (c.path, c.consumer) != (check.path, check.consumer)]
            records.write(run.verify, [*others, check])
            card.write(run, exports)
            for kind in {export.kind for export in exports}:
                portable.let_others_read(run.path / kind)
            if run.report.exists():
                write_report(run)
        return check

    def _do(self, stage: Stage) -> None:
        if self.context.where.separate and stage.run_separately is not None:
            self._print(stage, stage.run_separately(self.context))
            return
        reason = stage.skip_reason(self.work()) if stage.skip_reason is not None else None
        if reason is not None and getattr(self.context.config.experiments, stage.name, False):
            self.context.console.warn(f"  experiments.{stage.name} is left out: {reason}")
        result = stage.run(self) if reason is None else NotMeasured(reason=reason)
        if result is not None:
            records.write(stage.file(self.context.run), result)
            if not isinstance(result, NotMeasured):
                self._print(stage, result)

    def _print(self, stage: Stage, result: Result) -> None:
        for line in stage.lines(result):
            self.context.console.say(line, stage.style)

    def _check_inputs(self) -> None:
        differences = receipt.check(self.work())
        if differences:
            self.context.run.event("resumed_elsewhere", what=differences)
            self.context.console.warn(
                f"  the environment has changed since the run started: {'; '.join(differences)}; results may differ "
                "slightly (floating point), and greedy answers may diverge"
            )


def require_writer(plan: Plan) -> None:
    """Raises CONFIG_CONFLICT for a model that writes no text, which no server is asked for."""
    if plan.silent:
        message = f"a model trained by train.method={plan.method} {plan.silent}, which no server asks for."
        fix = "its exports were checked when they were written (export.json)."
        raise ConfigError("CONFIG_CONFLICT", message, where="train.method", fix=fix)


def start(
    config: Config, name: str | None, root: Path, console: Console, command: str, data: Dataset | None = None
) -> Context:
    """A new run folder with its config, or the existing folder of that name if it has exactly the same config, or no
    plan yet.

    ``data``: the data of this config, if it has been loaded already. Raises RUN_EXISTS, with the settings that differ,
    if the configs differ; RUN_INSIDE_DATA if the run's own files would be read as documents.
    """
    config = pinned(absolute(config))
    d = config.data
    for name_ in (path for paths in (d.train, d.dev, d.test, config.prove.documents) for path in listed(paths)):
        folder = searched_folder(name_)
        if folder is not None and root.resolve().is_relative_to(folder.resolve()):
            raise RunError(
                "RUN_INSIDE_DATA",
                f"the runs folder is inside {folder}, so that {name_} would read files of runs as data.",
                where=str(root),
                fix="put it elsewhere: --runs FOLDER.",
            )
    if name is not None and (root / name / "config.yaml").is_file():
        run = Run(root / name)
        data, stored = data or dataset.load(config), _config_of(run, config)
        return Context(run, stored, console, command, _of_run(data, run, stored))
    if config.date == "auto":  # a run that is continued tomorrow keeps today's prompts
        config = config.model_copy(update={"date": datetime.date.today().isoformat()})
    parents = () if root.exists() else (root,)
    data = data or dataset.load(config)
    run = run_folder.create(root, name, Path(title(config.data.train)).stem)
    run_folder.write_atomic(run.config, to_yaml(config))
    run.event("created", command=command)
    return Context(run, config, console, command, _of_run(data, run, config), created=(*parents, run.path))


def resume(run: Run, console: Console, command: str, settings: Sequence[str] = ()) -> Context:
    """An existing run, with the config that it started with. ``settings``: new ones, of `export` or the names of files
    that have moved, with paths relative to the working directory; receipt.check compares the files' content."""
    config = load(run.config)
    given = absolute(load(run.config, [*settings]))
    data = config.data.model_copy(update={side: getattr(given.data, side) for side in SIDES})
    changed = config.model_copy(update={"export": given.export, "data": data})
    new = tuple(settings) if changed != config else ()
    try:
        loaded = dataset.load(changed)
    except DataError as error:
        fix = f"if the file has moved: `tunewright report {run.path} data.train=FILE` (or data.dev, data.test)."
        raise DataError([replace(p, fix=fix) if p.code == "DATA_NOT_A_FILE" else p for p in error.problems]) from None
    return Context(run, changed, console, command, _of_run(loaded, run, changed), new_settings=new)


def _of_run(data: Dataset, run: Run, config: Config) -> Dataset:
    """The data, whose graders keep in the run folder what they asked models, and can load reward models."""
    task = rewards.stored_in(data.task, run.path / "rollouts" / "grades.jsonl")
    return replace(data, task=rewards.scored_by(task, reward_models.scores(config.date)))


def _config_of(run: Run, config: Config) -> Config:
    """``config``, with which an existing run continues. A run that ended before it had a plan, say because its grader
    failed, takes another config than it had. Raises RUN_EXISTS for other runs, RUN_LOCKED."""
    stored = load(run.config)
    if config.date == "auto":
        config = config.model_copy(update={"date": stored.date})
    there, here = flat(stored.model_dump()), flat(config.model_dump())
    keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    if keys and not _has_plan(run):
        with run_folder.writing(run):
            for file in (run.split, run.audit, run.sweep, run.selftest, run.protocol, run.receipt):
                file.unlink(missing_ok=True)
            run_folder.write_atomic(run.config, to_yaml(config))
            run.event("new_settings", settings=keys)
    elif keys:
        changed = [f"{k} is {there.get(k)} there and {here.get(k)} here" for k in keys]
        raise RunError(
            "RUN_EXISTS",
            f"a run of that name exists with a different config: {'; '.join(changed[:5])}.",
            where=str(run.path),
            fix=f"choose another --name, or continue that run unchanged: `tunewright run {run.path}`.",
        )
    return config


def _has_plan(run: Run) -> bool:
    """Or branches of a sweep, which are trained before there is a plan and may have taken hours."""
    return run.plan.exists() or (run.path / "branches").exists()


@contextmanager
def _remove_folder_on_user_error(context: Context) -> Iterator[None]:
    """If the user's mistake ends a new run before it has a plan, remove its folder."""
    try:
        yield
    except TunewrightError as error:
        if error.exit_code == 2 and context.created and not _has_plan(context.run):
            *parents, run = context.created
            shutil.rmtree(run)
            with suppress(OSError):  # another process may have put a run there
                for parent in parents:
                    parent.rmdir()
        raise


@contextmanager
def error_codes(run: Run, stage: str) -> Iterator[None]:
    """Turn an interruption or a lack of memory into an error with a code; files already written are complete."""
    try:
        yield
    except KeyboardInterrupt:
        raise TrainError(
            "RUN_INTERRUPTED",
            f"stopped during `{stage}`; everything before it is kept.",
            where=str(run.path),
            fix=f"`tunewright run {run.path}` continues from there.",
        ) from None
    except (MemoryError, RuntimeError) as error:
        if not machine.out_of_memory(error):
            raise
        raise TrainError(
            "TRAIN_MEMORY",
            f"out of memory during `{stage}`; peak memory {machine.peak_gb():.1f} GB.",
            where=str(run.path),
            fix="close other programs and run it again; or start a run with train.gradient_checkpointing=layers, a "
            "smaller train.tokens_per_pass, a smaller prove.batch_size, or a smaller model.",
        ) from None
