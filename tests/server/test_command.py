"""`tunewright serve` as a process, and the example clients, which are OpenAI's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from build import Done, cli, write_chat_rows
from server_running import SHORT_JOB, Running

from tunewright.cli.demo import rows_file

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "server"


def test_a_token_for_another_tenant(tmp_path: Path) -> None:
    done = cli("serve", "--home", "home", "--add-tenant", "team-b", cwd=tmp_path)
    lines = dict(line.split() for line in (tmp_path / "home" / "tokens").read_text().splitlines())
    assert (done.returncode, lines["team-b"]) == (0, done.stdout.strip())
    assert cli("serve", "--home", "home", "--add-tenant", "team-b", cwd=tmp_path).returncode == 2


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    folder: Path
    url: str
    key: str

    def log(self) -> str:
        return (self.folder / "err").read_text()


@contextmanager
def started(folder: Path, model: str) -> Iterator[Server]:
    words = ["serve", "--model", model, "--home", "home", "--port", "0", "--dtype", "float32"]
    with open(folder / "err", "w") as err:
        command = [sys.executable, "-m", "tunewright", *words]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=err, text=True)
    assert process.stdout is not None
    try:
        shown = dict(process.stdout.readline().split() for _ in range(3))
        yield Server(process, folder, shown["base_url"], shown["api_key"])
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def test_it_listens_checks_itself_and_stops_when_asked(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """A request that is being answered is answered to its end; the next start finds everything as it was."""
    with started(tmp_path, str(model_folder("llama"))) as server:
        file_id = stopped_while_it_answers(server)
    logged = [json.loads(x) for x in server.log().splitlines() if x.startswith("{")]
    assert {line["path"] for line in logged} == {"/v1/models", "/v1/files", "/v1/chat/completions"}
    assert "kept" not in server.log()

    def asked(home: str, *more: str) -> Done:
        return cli("serve", "--home", home, *more, cwd=tmp_path)

    assert "1 file" in asked("home", "--check").stdout
    assert asked("home", "--back-up", "copy").returncode == 0
    assert sorted(p.name for p in (tmp_path / "copy" / "files").iterdir()) == [f"{file_id}.txt"]
    assert "1 file" in asked("copy", "--check").stdout
    (tmp_path / "copy" / "files" / f"{file_id}.txt").write_text("changed")
    damaged = asked("copy", "--check")
    assert damaged.returncode == 2
    assert file_id in damaged.stderr


def stopped_while_it_answers(server: Server) -> str:
    """The id of a file that was uploaded before."""
    with httpx.Client(headers={"authorization": f"Bearer {server.key}"}, timeout=60) as http:
        url = server.url
        name = http.get(f"{url}/models").json()["data"][0]["id"]
        content = {"purpose": "user_data"}, {"file": ("kept.txt", b"kept")}
        file_id = http.post(f"{url}/files", data=content[0], files=content[1]).json()["id"]
        body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 40}
        with http.stream("POST", f"{url}/chat/completions", json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(60) == 0, server.log()
    return str(file_id)


def run_client(command: list[str], url: str, key: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cwd, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_node_example(server: Running, tmp_path: Path) -> None:
    """Installs OpenAI's client for Node from its registry."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    shutil.copy(EXAMPLES / "client.mjs", tmp_path)
    command = ["npm", "install", "--no-audit", "--no-fund", "openai"]
    installed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install openai: {installed.stderr[-200:]}")
    rows = write_chat_rows(tmp_path / "rows.jsonl", 61)
    settings = json.dumps(SHORT_JOB)
    command = ["node", "client.mjs", str(rows), server.model, settings]
    done = run_client(command, f"{server.url}/v1", server.token(), tmp_path)
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["answer"] == result["streamed"]
    assert result["events"] > 8


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On the 135M model."""
    with started(tmp_path_factory.mktemp("real"), "smollm2-135m") as server:
        yield server


# Of the 300 rows, which are all uploaded, audited and split, two steps see four, and the arms answer four.
SHORT_REAL_JOB = {
    "train.steps": 2,
    "train.batch_size": 2,
    "train.tokens_per_pass": 256,
    "train.eval_every": 2,
    "split.dev": 0.02,
    "prove.evidence": "plain",
    "prove.few_shot": [],
    "prove.max_test_rows": 4,
    "prove.max_dev_rows": 2,
    "prove.max_new_tokens": 32,
    "adapter.rank": 4,
}


def test_the_python_example_on_the_real_model(real: Server, tmp_path: Path) -> None:
    """300 real addresses, from their upload to an enforced schema, of the base and of the tuned model."""
    *events, verdict, base, tuned, expected = example(real, tmp_path, SHORT_REAL_JOB).splitlines()
    assert events[0].startswith("Created fine-tuning job")
    assert events[-1] == "The job has successfully completed"
    steps = [line.partition(":")[0] for line in events if line.startswith("Step ")]
    assert steps == ["Step 1/2", "Step 2/2"]
    assert verdict.endswith("on 4 held-out rows")
    assert (base.partition(": ")[0], tuned[:16]) == ("smollm2-135m", "ft:smollm2-135m:")
    fields = json.loads(expected.removeprefix("expected: "))
    for answer in (base, tuned):
        written = json.loads(answer[answer.index("{") :])
        assert set(written) <= set(fields)
        assert all(isinstance(value, str) for value in written.values())


@pytest.mark.slow
def test_the_real_model_gets_better(real: Server, tmp_path: Path) -> None:
    settings = {"train.steps": 60, "prove.evidence": "plain", "prove.max_test_rows": 40}
    assert "BETTER" in example(real, tmp_path, settings)


def example(server: Server, folder: Path, settings: dict[str, Any]) -> str:
    """What the example for Python prints, with 300 addresses and the one after them."""
    rows = folder / "addresses.jsonl"
    rows.write_bytes(b"".join(rows_file().read_bytes().splitlines(keepends=True)[:301]))
    words = [str(EXAMPLES / "client.py"), str(rows), "--settings", json.dumps(settings)]
    return run_client([sys.executable, *words], server.url, server.key).stdout
