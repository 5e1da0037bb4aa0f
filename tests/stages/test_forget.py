"""Forgetting, its mitigation, and the cost of a request."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from build import Folder, byte_tokenizer, plan_of, read
from safetensors.torch import load_file

from tunewright import api
from tunewright.core.chosen import chosen_scale
from tunewright.core.config import load
from tunewright.core.errors import ConfigError
from tunewright.core.run_folder import Run, read_lines
from tunewright.data.messages import Chat, Message
from tunewright.data.metrics import METRICS
from tunewright.model import peft_format
from tunewright.runtime import chat
from tunewright.stages import forgetting, probes
from tunewright.tokens.template import Template


def test_the_smallest_scale_within_one_standard_error_is_chosen() -> None:
    clear = {0.25: [0.0] * 20, 0.5: [0.5] * 20, 1.0: [1.0] * 20}
    assert forgetting.choose(clear) == 1.0
    assert forgetting.choose({s: [1.0] * 20 for s in (0.25, 0.5, 1.0)}) == 0.25
    near = {0.25: [0.0] * 20, 0.5: [1.0] * 19 + [0.0], 1.0: [1.0] * 20}
    assert forgetting.choose(near) == 0.5
    assert forgetting.choose({s: [-x for x in v] for s, v in clear.items()}, higher_is_better=False) == 1.0


def test_answers_to_regression_rows_are_not_cut_where_those_to_the_rows_would_end() -> None:
    """Else a job that trains on labels would cut longer answers of both models, and find them equally wrong."""
    rows = [Chat((Message("user", "q"), Message("assistant", "a" * size)), "x") for size in (3, 100)]

    def limit(context: int = 2048, setting: Any = "auto") -> int:
        inputs = SimpleNamespace(template=Template(byte_tokenizer()), facts=SimpleNamespace(context=context))
        config = load(None, prove__max_new_tokens=setting)
        work: Any = SimpleNamespace(config=config, plan=plan_of(max_new_tokens=6), inputs=inputs)
        return probes.longest_answer(work, rows)

    assert limit() == 100 + 25 + 8
    assert 6 < limit(100) < 100  # within the context, behind the prompt
    assert limit(10) == limit(setting=6) == 6


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("regression_rows=[keep.jsonl]", "prove.evidence=plain"),
        ("apply_best_scale=true", "prove.evidence=plain"),
        ("apply_best_scale=true", "adapter.kind=none"),
    ],
)
def test_what_would_not_be_measured_is_refused(asked: str, given: str) -> None:
    load(None, [f"forget.{asked}"])
    with pytest.raises(ConfigError, match=rf"CONFIG_CONFLICT.* forget.{asked.partition('=')[0]}"):
        load(None, [f"forget.{asked}", given])


def test_forgetting_mitigation_and_cost_have_their_numbers(full: api.Result) -> None:
    f = read(full.path, "forgetting")
    assert f["scales"] == [0.5, 1.0]
    for text in ("task", "generic"):
        assert 0 < f[text]["kl_bits"][0] < f[text]["kl_bits"][1]
    generic = f["generic"]
    assert generic["delta_bits_per_byte"][1] == pytest.approx(
        generic["delta_bits"][1] * generic["tokens"] / generic["bytes"]
    )
    assert 1 < generic["base_bits_per_byte"] < 9
    assert f["probes"]["knowledge"]["items"] >= 300
    following = f["probes"]["instructions"]
    assert following["items"] == sum(k["items"] for k in following["kinds"].values()) == 300
    assert sum(k["tuned"] * k["items"] for k in following["kinds"].values()) / 300 == pytest.approx(following["tuned"])
    assert f["probes"]["refusal"] == {"base_rate": 0.0, "measured": False}  # a random model does not refuse
    assert f["regression_rows"]["items"] == 3
    m = read(full.path, "mitigation")
    assert set(m["variants"]) >= {"unchanged", "lr / 3"}
    assert len(m["variants"]) == 3
    assert m["variants"]["lr / 3"]["generic"]["kl_bits"] < m["variants"]["unchanged"]["generic"]["kl_bits"]
    assert m["chosen"] in m["variants"]
    c = read(full.path, "cost")
    assert {w.split(",")[0] for w in c["setups"]} >= {"tuned", "base"} or full.verdict["comparator"][
        "name"
    ] == "constant"
    assert c["money"]["per_thousand"]


def test_the_chosen_scale_is_judged_exported_and_served(tmp_path: Path, model_folder: Folder) -> None:
    """With random labels, no scale of the update scores better than another, so the rule chooses the smallest."""
    rows = [f"lot {i * 37 % 1009},{'warm' if i * i % 7 > 3 else 'cold'}\n" for i in range(80)]
    (tmp_path / "labels.csv").write_text("text,label\n" + "".join(rows))
    done = api.run(tmp_path / "labels.csv", model=str(model_folder("llama")), name="less", root=tmp_path, threads=1,
                  train__steps=4, train__batch_size=4, train__dtype="float32",
                  prove__few_shot=[], prove__max_dev_rows=8,
                  forget__apply_best_scale=True, forget__scales=[0.25])  # fmt: skip
    run = Run(done.path)
    assert chosen_scale(run) == read(done.path, "forgetting")["chosen"] == 0.25
    trained, exported = load_file(run.weights), load_file(run.adapter / "adapter_model.safetensors")
    served = peft_format.state(chat.load_run(run).model.module)
    for name, tensor in trained.items():
        expected = tensor * 0.25 if "lora_B" in name else tensor
        mine = f"base_model.model.{name}.weight"
        assert torch.equal(exported[mine], expected), name
        assert torch.equal(served[mine], expected), name
    calibrated, swept = (
        {line["row"]: (line["answer"], line["probs"]) for line in read_lines(run.scores / "dev" / f"{name}.jsonl")}
        for name in ("calibration", "tuned-scale0.25")
    )
    assert swept
    assert {row: calibrated[row] for row in swept} == swept, "calibration reads the same model"


def test_fewer_bits_on_regression_rows_are_better() -> None:
    """Documents are scored in bits per byte: a loss must not be called a gain."""
    before, after = [1.3 + i / 100 for i in range(20)], [1.1 + i / 100 for i in range(20)]
    probe = probes.paired(after, before, 0.02, 0.05, METRICS["bits_per_byte"])
    assert (probe["verdict"], round(probe["difference"], 6)) == ("BETTER", 0.2)
    assert probes.paired(before, after, 0.02, 0.05, METRICS["bits_per_byte"])["verdict"] == "WORSE"
    assert probes.paired(after, before, 0.02, 0.05, METRICS["chrf"])["verdict"] == "WORSE"


def test_repeated_regression_rows_count_once() -> None:
    """Ten copies of ten rows show no more than ten rows do."""
    copies = [i // 10 for i in range(100)]
    for right, wrong in ((1.0, 0.0), (0.9, 0.1)):
        before, after = [right] * 100, [right] * 90 + [wrong] * 10
        alone, together = (probes.paired(after, before, 0.02, 0.05, METRICS["chrf"], c) for c in ([], copies))
        assert (alone["verdict"], together["verdict"], together["items"]) == ("WORSE", "CANNOT TELL", 100)
        assert together["detectable"] > alone["detectable"]
    ten = probes.paired([1.0] * 9 + [0.0], [1.0] * 10, 0.02, 0.05)
    copied = probes.paired([1.0] * 90 + [0.0] * 10, [1.0] * 100, 0.02, 0.05, clusters=copies)
    assert copied["interval"] == pytest.approx(ten["interval"])
