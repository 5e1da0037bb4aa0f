"""The files in deploy/, read by programs that know their formats; nothing here runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from tunewright.cli import main

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.iterdir())
# Versions are pinned by constraints.txt, and Debian's packages by the image; users are named, not numbered.
UNPINNED = ["--ignore", "DL3013", "--ignore", "DL3008", "--ignore", "DL3066"]


def read_yaml(path: Path) -> dict[str, object]:
    """As plain values, with what YAML refers to put in place."""
    loaded: dict[str, object] = json.loads(json.dumps(YAML(typ="safe", pure=True).load(path.read_text())))
    return loaded


def linted(program: str, *words: str) -> None:
    """It is in the environment of the tests, which need not be on the PATH."""
    path = shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert path is not None, f"{program} is not installed"
    done = subprocess.run([path, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the linters are installed on Linux")
@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sbatch")), ids=lambda p: p.name)
def test_scripts_have_no_mistake_that_shellcheck_knows(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    linted("shellcheck", str(script))


@pytest.mark.skipif(sys.platform != "linux", reason="the linters are installed on Linux")
@pytest.mark.parametrize("file", sorted(DEPLOY.glob("Dockerfile*")), ids=lambda p: p.name)
def test_dockerfiles_copy_what_exists_and_install_what_is_offered(file: Path) -> None:
    linted("hadolint", *UNPINNED, str(file))
    text = file.read_text()
    for line in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in line.split())
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\[([a-z]+)\]", text)) <= set(offered)
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.M), "the files ask for this line"


def test_kubeflow_reads_its_job_as_it_is_written() -> None:
    """The client of Kubeflow Trainer drops what its API does not have."""
    from kubeflow_trainer_api import models

    written = read_yaml(DEPLOY / "trainjob.yaml")
    assert models.TrainerV1alpha1TrainJob.from_dict(written).to_dict() == written


def test_both_pods_of_the_ray_job_see_the_runs() -> None:
    job = read_yaml(DEPLOY / "ray-job.yaml")
    cluster = job["spec"]["rayClusterSpec"]  # type: ignore[index]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert [m["mountPath"] for m in container["volumeMounts"]] == ["/runs"]
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in groups[1:])


def test_the_commands_in_them_exist() -> None:
    commands = get_command(main.app).commands  # type: ignore[attr-defined]
    seen = set()
    for file in FILES:
        for line in file.read_text().splitlines():
            for name, rest in re.findall(r'(?:^|[ "`])tunewright(?::\w+ |"?,? "?)([a-z-]+)\b(?!:)(.*)', line):
                if name in commands:
                    seen.add(name)
                    options = {word for p in commands[name].params for word in p.opts}
                    assert set(re.findall(r" (--[a-z-]+)", rest)) <= options, f"{file.name}: {line}"
    assert seen == {"train", "plan", "sweep", "run"}
