"""What is sent to each tracker, under the names that are usual in the field. Where to is decided by the tracker's own
settings and environment variables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = "tunewright"
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """``id``: the same whenever the run is continued. ``plan``: settings by dotted name."""

    folder: Path
    id: str
    plan: Mapping[str, Any]


@dataclass(frozen=True)
class Tracker:
    """An open connection. ``log``: (step, numbers of that step). ``conclude``: (numbers and words of the verdict at a
    step). ``attach``: a file. ``close``: whether the run is finished."""

    log: Callable[[int, Numbers], None]
    conclude: Callable[[int, Numbers, Mapping[str, str]], None]
    attach: Callable[[Path], None]
    close: Callable[[bool], None]


def trackio(run: TrackedRun) -> Tracker:
    import trackio

    opened = trackio.init(
        PROJECT, name=run.folder.name, config={**run.plan}, resume="allow", embed=False, auto_log_gpu=False
    )

    def conclude(step: int, numbers: Numbers, words: Mapping[str, str]) -> None:
        opened.log({**numbers, **words}, step=step)

    def attach(file: Path) -> None:
        artifact = trackio.Artifact(f"{run.folder.name}-report", type="report")
        artifact.add_file(str(file))
        opened.log_artifact(artifact)

    return Tracker(
        lambda step, numbers: opened.log({**numbers}, step=step), conclude, attach, lambda done: opened.finish()
    )


def mlflow(run: TrackedRun) -> Tracker:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    known = client.search_runs([number], f"tags.`tunewright.id` = '{run.id}'", max_results=1)
    if known:
        id_ = known[0].info.run_id
        client.update_run(id_, status="RUNNING")
    else:
        id_ = client.create_run(number, tags={"tunewright.id": run.id}, run_name=run.folder.name).info.run_id
        client.log_batch(id_, params=[Param(key, str(value)) for key, value in run.plan.items()])

    def log(step: int, numbers: Numbers) -> None:
        now = int(1000 * time.time())
        client.log_batch(id_, metrics=[Metric(key, value, now, step) for key, value in numbers.items()])

    def conclude(step: int, numbers: Numbers, words: Mapping[str, str]) -> None:
        log(step, numbers)
        for key, word in words.items():
            client.set_tag(id_, key, word)

    return Tracker(
        log,
        conclude,
        lambda file: client.log_artifact(id_, str(file)),
        lambda done: client.set_terminated(id_, "FINISHED" if done else "KILLED"),
    )


def wandb(run: TrackedRun) -> Tracker:
    import wandb

    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=run.id,
        name=run.folder.name,
        resume="allow",
        config={**run.plan},
        dir=run.folder / "track",
        settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
    )

    def attach(file: Path) -> None:
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        artifact.add_file(str(file))
        opened.log_artifact(artifact)

    return Tracker(
        lambda step, numbers: opened.log({**numbers}, step=step),
        lambda step, numbers, words: opened.summary.update({**numbers, **words}),
        attach,
        lambda done: opened.finish(),
    )


def tensorboard(run: TrackedRun) -> Tracker:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run.folder / "track" / "tensorboard"), flush_secs=10)
    as_text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))

    def add(step: int, values: list[Any]) -> None:
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def log(step: int, numbers: Numbers) -> None:
        add(step, [Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()])

    def write(step: int, tag: str, text: str) -> None:
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        add(step, [Summary.Value(tag=tag, tensor=tensor, metadata=as_text)])

    def conclude(step: int, numbers: Numbers, words: Mapping[str, str]) -> None:
        log(step, numbers)
        write(step, "verdict", ", ".join(f"{key} {word}" for key, word in words.items()))

    write(0, "plan", "\n".join(f"    {key}: {value}" for key, value in run.plan.items()))
    return Tracker(log, conclude, lambda file: write(0, "report", f"file: {file}"), lambda done: writer.close())


TRACKERS = {"trackio": trackio, "mlflow": mlflow, "wandb": wandb, "tensorboard": tensorboard}
