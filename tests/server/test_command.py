"""`tunewright serve` as a process, and the example clients, which are OpenAI's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from build import cli, write_chat_rows
from server_running import SHORT_JOB, Running

from tunewright.cli.demo import rows_file

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "server"


def test_a_token_for_another_tenant(tmp_path: Path) -> None:
    done = cli("serve", "--home", "home", "--add-tenant", "team-b", cwd=tmp_path)
    lines = dict(line.split() for line in (tmp_path / "home" / "tokens").read_text().splitlines())
    assert (done.returncode, lines["team-b"]) == (0, done.stdout.strip())
    assert cli("serve", "--home", "home", "--add-tenant", "team-b", cwd=tmp_path).returncode == 2


def test_it_listens_checks_itself_and_stops_when_asked(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """A request that is being answered is answered to its end; the next start finds everything as it was."""
    words = ["-m", "tunewright", "serve", "--model", str(model_folder("llama")), "--home", "home"]
    with open(tmp_path / "err", "w") as err:
        command = [sys.executable, *words, "--port", "0", "--dtype", "float32"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True)
    assert process.stdout is not None
    shown = dict(process.stdout.readline().split() for _ in range(3))
    with httpx.Client(headers={"authorization": f"Bearer {shown['api_key']}"}, timeout=60) as http:
        url = shown["base_url"]
        name = http.get(f"{url}/models").json()["data"][0]["id"]
        content = {"purpose": "user_data"}, {"file": ("kept.txt", b"kept")}
        file_id = http.post(f"{url}/files", data=content[0], files=content[1]).json()["id"]
        body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 40}
        with http.stream("POST", f"{url}/chat/completions", json={**body, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert process.wait(60) == 0, (tmp_path / "err").read_text()
    process.stdout.close()
    logged = [json.loads(x) for x in (tmp_path / "err").read_text().splitlines() if x.startswith("{")]
    assert {line["path"] for line in logged} == {"/v1/models", "/v1/files", "/v1/chat/completions"}
    assert "kept" not in (tmp_path / "err").read_text()

    def asked(home: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *words[:-1], home, *more], cwd=tmp_path, capture_output=True, text=True)

    assert "1 file" in asked("home", "--check").stdout
    assert asked("home", "--back-up", "copy").returncode == 0
    assert sorted(p.name for p in (tmp_path / "copy" / "files").iterdir()) == [f"{file_id}.txt"]
    assert "1 file" in asked("copy", "--check").stdout
    (tmp_path / "copy" / "files" / f"{file_id}.txt").write_text("changed")
    damaged = asked("copy", "--check")
    assert damaged.returncode == 2
    assert file_id in damaged.stderr


def test_the_python_example(server: Running, tmp_path: Path) -> None:
    rows = write_chat_rows(tmp_path / "rows.jsonl", 61)
    lines = [json.loads(x) for x in rows.read_text().splitlines()]
    for line in lines:
        line["messages"][-1]["content"] = json.dumps({"word": line["messages"][-1]["content"]})
    rows.write_text("".join(json.dumps(x) + "\n" for x in lines))
    words = [str(EXAMPLES / "client.py"), str(rows), "--rows", "60", "--model", server.model]
    done = run_client([sys.executable, *words, "--settings", json.dumps(SHORT_JOB)], server)
    tuned = done.stdout.splitlines()[-2]
    assert tuned.startswith("ft:")
    assert "{" in tuned


def run_client(command: list[str], server: Running, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": server.token()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cwd, timeout=300)
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
    done = run_client(["node", "client.mjs", str(rows), server.model, settings], server, tmp_path)
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["answer"] == result["streamed"]
    assert result["events"] > 8


@pytest.mark.slow
def test_the_real_model_from_upload_to_an_enforced_schema(tmp_path: Path) -> None:
    """300 real addresses, the 135M model, only OpenAI's client."""
    rows = tmp_path / "addresses.jsonl"
    rows.write_bytes(b"".join(rows_file().read_bytes().splitlines(keepends=True)[:301]))
    with open(tmp_path / "err", "w") as err:
        words = [sys.executable, "-m", "tunewright", "serve", "--port", "0", "--home", "home"]
        process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True)
    assert process.stdout is not None
    try:
        shown = dict(process.stdout.readline().split() for _ in range(3))
        environment = {**os.environ, "OPENAI_BASE_URL": shown["base_url"], "OPENAI_API_KEY": shown["api_key"]}
        settings = {"train.steps": 60, "prove.evidence": "plain", "prove.max_test_rows": 40}
        command = [sys.executable, str(EXAMPLES / "client.py"), str(rows), "--settings", json.dumps(settings)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "BETTER" in done.stdout
        tuned = done.stdout.splitlines()[-2]
        assert isinstance(json.loads(tuned[tuned.index("{") :]), dict)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
