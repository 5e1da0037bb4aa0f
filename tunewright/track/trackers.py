"""What each tracker is sent. Where it keeps that is decided by its own settings and environment variables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PROJECT = "tunewright"
# Otherwise these packages (trackio through gradio_client) report how they are used, or their errors, to their makers.
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class TrackedRun:
    """``id``: the same whenever the run is continued. ``plan``: its settings by dotted name."""

    folder: Path
    id: str
    plan: Mapping[str, object]


@dataclass(frozen=True)
class Tracker:
    """An open connection. ``log``: (step, values by name) of that step, texts among them. ``attach``: a file."""

    log: Callable[[int, Mapping[str, float | str]], None]
    attach: Callable[[Path], None]
    close: Callable[[], None]


def wandb(run: TrackedRun) -> Tracker:
    import wandb

    own = {"console": "off", "disable_git": True, "disable_code": True, "x_disable_meta": True, "x_disable_stats": True}
    project, settings = os.environ.get("WANDB_PROJECT", PROJECT), wandb.Settings(**own)
    where = {"project": project, "id": run.id, "dir": run.folder / "track"}
    return _like_wandb(run, wandb, name=run.folder.name, settings=settings, **where)


def trackio(run: TrackedRun) -> Tracker:
    import trackio

    name = f"{run.folder.name}-{run.id[:8]}"  # it knows a run by its name alone
    return _like_wandb(run, trackio, name=name, project=PROJECT, embed=False, auto_log_gpu=False, auto_log_cpu=False)


def _like_wandb(run: TrackedRun, module: ModuleType, **options: object) -> Tracker:
    opened = module.init(resume="allow", config={**run.plan}, **options)

    def attach(file: Path) -> None:
        artifact = module.Artifact(f"{run.folder.name}-{file.stem}", type="report")
        artifact.add_file(str(file))
        opened.log_artifact(artifact)

    return Tracker(lambda step, values: opened.log({**values}, step=step), attach, opened.finish)


def mlflow(run: TrackedRun) -> Tracker:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    known = client.search_runs([number], f"tags.`tunewright.id` = '{run.id}'", max_results=1)
    opened = known[0] if known else client.create_run(number, tags={"tunewright.id": run.id}, run_name=run.folder.name)
    id_ = opened.info.run_id
    client.log_batch(id_, params=[Param(key, str(value)) for key, value in run.plan.items()])

    def log(step: int, values: Mapping[str, float | str]) -> None:
        now, texts = int(1000 * time.time()), {key: value for key, value in values.items() if isinstance(value, str)}
        metrics = [Metric(key, value, now, step) for key, value in values.items() if key not in texts]
        client.log_batch(id_, metrics, tags=[RunTag(key, value) for key, value in texts.items()])

    return Tracker(log, lambda file: client.log_artifact(id_, str(file)), lambda: client.set_terminated(id_))


def tensorboard(run: TrackedRun) -> Tracker:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run.folder / "track" / "tensorboard"), flush_secs=10)
    as_text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))

    def value_of(tag: str, value: float | str) -> object:
        if not isinstance(value, str):
            return Summary.Value(tag=tag, simple_value=value)
        tensor = TensorProto(dtype=DT_STRING, string_val=[value.encode()])
        return Summary.Value(tag=tag, tensor=tensor, metadata=as_text)

    def log(step: int, values: Mapping[str, float | str]) -> None:
        summary = Summary(value=[value_of(tag, value) for tag, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    log(0, {"plan": "\n".join(f"    {key}: {value}" for key, value in run.plan.items())})
    return Tracker(log, lambda file: log(0, {"report": f"file: {file}"}), writer.close)


TRACKERS = {"trackio": trackio, "mlflow": mlflow, "wandb": wandb, "tensorboard": tensorboard}
