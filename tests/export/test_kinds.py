"""Each kind of export is written, reloaded in a fresh process, and rejected if it differs; its card loads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from build import plan_of
from report import records

from tunewright.core import records as typed
from tunewright.core.config import AdapterConfig, load
from tunewright.core.errors import ConfigError, TrainError
from tunewright.core.run_folder import Run, read_json, write_json
from tunewright.data.messages import question
from tunewright.export import EXPORTS, card, export, merged
from tunewright.export.kind import Place, TrainedRun, sampling, served_context
from tunewright.export.merged import MERGED
from tunewright.export.reload_check import CheckPrompt
from tunewright.model import adapters
from tunewright.model.facts import read_facts
from tunewright.model.loading import load as load_model
from tunewright.tokens import rendering
from tunewright.tokens.template import load_template
from tunewright.train import checkpoints

STOP = [258]


@dataclass(frozen=True)
class Made:
    """A run folder with only the trained weights, and the parts of its model."""

    source: TrainedRun
    folder: Path


@pytest.fixture
def trained(tmp_path: Path, model_folder: Callable[[str], Path]) -> Made:
    folder = model_folder("llama")
    plan = plan_of(adapter=AdapterConfig(rank=4, alpha=8.0), threads=1)
    run = Run(tmp_path / "one")
    run.checkpoints.mkdir(parents=True)
    model = load_model(str(folder), torch.float32)
    adapters.attach(model.module, plan.adapter, plan.seed)
    parameters = adapters.trainable(model.module)
    generator = torch.Generator().manual_seed(0)
    for p in parameters.values():
        p.data = torch.randn(p.shape, generator=generator) * 0.05
    sha256 = checkpoints.save_weights(run.weights, parameters)
    write_json(run.training, {**records.training(), "weights_sha256": sha256})
    config = load(None, model=str(folder))
    return Made(TrainedRun(run, config, plan, read_facts(str(folder)), load_template(folder)), folder)


def check_prompts(source: TrainedRun) -> list[CheckPrompt]:
    messages = {"conversation": [{"role": "user", "content": "What is two and two?"}]}
    ids = rendering.for_generation(source.template, question("What is two and two?"))
    return [CheckPrompt([1, 2, 3, 40]), CheckPrompt(ids, messages)]


def test_every_wanted_export_is_written_and_answers_as_the_model_does(trained: Made) -> None:
    checks = export.export(trained.source, check_prompts(trained.source), STOP)
    assert [c.kind for c in checks] == ["adapter", "merged"]
    assert checks[0].largest_difference == 0.0, "our loader computes what training computed"
    assert all(c.largest_difference < 1e-4 and c.same_texts == c.prompts == 2 for c in checks)
    assert all(c.loaded_with == EXPORTS[c.kind].loaded_with and c.dtype == "float32" for c in checks)


def test_answers_end_in_exports_where_they_ended_in_the_run(trained: Made, tmp_path: Path) -> None:
    """Also if the base's generation config has another token for it than its tokenizer."""
    source, model = trained.source, load_model(str(trained.folder), torch.float32)
    model.module.generation_config.update(eos_token_id=7, repetition_penalty=1.5)
    adapters.attach(model.module, source.plan.adapter, source.plan.seed)
    for kind in ("adapter", "merged"):
        if EXPORTS[kind].merged:
            adapters.merge(model.module)
        EXPORTS[kind].write(source, model.module, tmp_path / kind, "float32")
        written = read_json(tmp_path / kind / "generation_config.json")
        assert written["eos_token_id"] == [7, source.template.eos]
        assert "repetition_penalty" not in written


def test_without_an_adapter_only_the_merged_model_is_exported(trained: Made) -> None:
    source = trained.source
    full, plain = (
        source.plan.model_copy(update={"adapter": AdapterConfig(kind="none")}),
        load(None, export__to=["adapter"]),
    )
    assert [row.kind for row in export.wanted(replace(source, config=plain, plan=full))] == ["merged"]
    assert [row.kind for row in export.wanted(replace(source, config=plain))] == ["adapter"]
    nothing = load(None, export__to=[])
    assert not export.wanted(replace(source, config=nothing, plan=full))


def test_an_export_that_answers_otherwise_is_refused(trained: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong merge: the folder loads, but contains the base model."""
    monkeypatch.setattr(adapters, "merged_weight", None, raising=False)
    monkeypatch.setattr(adapters.LoRALinear, "merged_weight", lambda layer: layer.base.weight)
    with pytest.raises(TrainError, match="the merged export is rejected: the reloaded model differs") as caught:
        export.export(trained.source, check_prompts(trained.source), STOP)
    assert caught.value.code == "EXPORT_MISMATCH"
    assert not trained.source.run.export.exists()
    assert not list(trained.source.run.path.glob("*merged*")), "nothing of a rejected export is left"


def test_an_export_with_another_tokenizer_is_refused(trained: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are right, but it would read every prompt differently."""

    def write(source: TrainedRun, module: object, folder: Path, dtype: str) -> Path:
        MERGED.write(source, module, folder, dtype)  # type: ignore[arg-type]
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
        file.write_text(json.dumps(content))
        return folder

    monkeypatch.setitem(EXPORTS, "merged", replace(MERGED, write=write))
    with pytest.raises(TrainError, match="its tokenizer or chat template encodes a prompt differently"):
        export.export(trained.source, check_prompts(trained.source), STOP)


def test_an_export_that_the_model_does_not_support_is_refused_before_training(
    trained: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORTS, "merged", replace(MERGED, unsupported=lambda source: "this architecture is unknown"))
    with pytest.raises(ConfigError, match="the merged export cannot be written") as caught:
        export.require_supported(trained.source)
    assert caught.value.where == "export.to"


def test_an_export_that_does_not_load_is_refused(trained: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(EXPORTS["merged"], write=lambda source, module, folder, dtype: folder)
    monkeypatch.setitem(EXPORTS, "merged", broken)
    with pytest.raises(TrainError, match="a fresh process could not load it"):
        export.export(trained.source, check_prompts(trained.source), STOP)


def test_merged_weights_have_the_dtype_in_which_the_run_was_judged(trained: Made) -> None:
    source = trained.source
    judged = replace(source, plan=source.plan.model_copy(update={"dtype": "bfloat16"}))
    assert merged.stored_dtypes(source) == ["float32"]
    assert merged.stored_dtypes(judged) == ["bfloat16"]
    assert merged.stored_dtypes(replace(judged, config=load(None, export__dtype="float16"))) == ["float16"]


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("kind", EXPORTS)
def test_the_card_says_what_was_proven_and_how_to_load_it(tmp_path: Path, kind: str, measured: bool) -> None:
    everything = records.everything()
    everything["forgetting"] = {**records.forgetting(), "chosen": 0.5} if measured else {"measured": False}
    everything["verdict"]["unbeaten"] = [] if measured else ["zero_shot"]
    everything["receipt"]["template"]["day"] = "2026-01-01" if measured else ""
    run = records.write(tmp_path / "one", everything)
    checks = records.typed(typed.EXPORTS, records.exports())
    card.write(run, checks)
    row = EXPORTS[kind]
    text = (run.path / kind / "README.md").read_text(encoding="utf-8")
    head, body = text.removeprefix("---\n").split("\n---\n")
    assert head.splitlines()[:2] == ['base_model: "smollm2-135m"', f"library_name: {row.library}"]
    assert (
        "**BETTER**, compared with the best untrained arm (nearest, chosen on dev): accuracy 0.7000 vs. 0.5000" in body
    )
    assert "| tuned | 0.7000 | [0.6000, 0.8000] |" in body
    assert f"with {row.loaded_with}; 8 held-out prompts in float32" in body
    code = body.split("```python\n")[1].split("\n```")[0]
    mine = [check for check in checks if check.kind == kind]
    place = Place("smollm2-135m", Path(mine[0].path).name, served_context(run), sampling(run))
    assert code.startswith("\n".join(row.snippet(place)))
    assert ("Or serve it in this folder" in body) is ("\nllama-server " in body) is kind.endswith("gguf")
    assert re.findall(r"Stored as (\w+)\.", body) == [check.dtype for check in mine]
    assert ("llama.cpp splits all 12 rows of the run into the trained model's tokens." in body) is (kind == "gguf")
    compile(code, "card", "exec")
    assert ("**18 of 20** answers equal those behind the verdict; accuracy 0.6500, in the verdict 0.7000" in body) is (
        kind == "adapter"
    )
    assert ("- vLLM 0.32.0 (2026-11-28): the trained model's answers; 9 of 9 texts" in body) is (kind == "merged")
    assert ("written, not yet checked in another program" in body) is (kind != "merged")
    assert ("the weights contain 0.5 of the trained update" in body) is measured
    assert ("not shown to be better than zero_shot." in body) is not measured
    assert ("the day of training" in body) is measured
    assert not [line for line in body.splitlines() if line != line.rstrip()]
    assert "\n\n\n" not in body


@pytest.mark.parametrize(
    ("decoding", "library", "words", "command"),
    [
        ("greedy", "transformers", ["do_sample=False"], ""),
        ("sampled", "transformers", ["do_sample=True", "temperature=0.7", "top_k=0", "top_p=1.0"], ""),
        ("penalty", "gguf", ["temperature=0.0", "repeat_penalty=1.1", "last_n_tokens_size="], "--repeat-last-n -1"),
        ("sampled", "gguf", ["temperature=0.7", "min_p=0.0", "top_k=0"], "--temp 0.7 --top-k 0 --top-p 1 --min-p 0"),
    ],
)
def test_the_card_chooses_tokens_as_the_verdict_did(
    tmp_path: Path, decoding: str, library: str, words: list[str], command: str
) -> None:
    """llama.cpp cuts the tail of a distribution by default, and looks back 64 tokens for repetitions."""
    everything = records.everything()
    everything["verdict"]["arms"]["tuned"]["decoding"] = decoding
    run = records.write(tmp_path / "one", everything)
    card.write(run, records.typed(typed.EXPORTS, records.exports()))
    kind = {"transformers": "merged", "gguf": "gguf"}[library]
    text = (run.path / kind / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("\n```")[0]
    compile(code, "card", "exec")
    assert [word for word in words if word not in code] == []
    assert command in text
