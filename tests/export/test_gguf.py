"""GGUF files contain the trained model bit for bit, as transformers' own reader finds it. What cannot be written is
refused before training, and what was written wrongly after it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from build import stock_templates
from export import families
from export.families import FAMILIES, bpe, run_of, trained_run
from gguf import GGUFReader
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import TemplateError

from tunewright.core.config import AdapterConfig
from tunewright.core.errors import ConfigError, MissingExtra, ModelError, TrainError
from tunewright.core.sampling import DECODINGS
from tunewright.data.messages import question
from tunewright.export import EXPORTS, export
from tunewright.export.gguf import architecture, llama_cpp, lora, tensors, vocabulary
from tunewright.export.gguf.model import GGUF
from tunewright.export.kind import Base, TrainedRun
from tunewright.export.reload_check import CheckPrompt
from tunewright.model import adapters, loading
from tunewright.tokens import rendering
from tunewright.tokens.template import Template

IDS = torch.tensor([[5, 80, 120, 33, 270, 301, 7, 7, 64, 200, 11, 3, 350]])
TEXTS = ["it's    5 o'clock\n\n  now", "<|im_start|>user\nnaïve <tool_call> 🚀<|im_end|>", "x  " * 9]
CHATML = families.CHATML

Saved = Callable[[str], Path]


@pytest.fixture(scope="session")
def saved(shared: Callable[..., Path]) -> Saved:
    """The tiny model of a family, in a folder."""
    return lambda name: shared(f"gguf-{name}", lambda folder: families.save(name, folder))


@pytest.fixture
def source(saved: Saved, tmp_path: Path) -> Callable[..., TrainedRun]:
    """``source(family, adapter, **settings)``: a run with trained weights."""

    def make(name: str = "smollm", adapter: AdapterConfig | None = None, **settings: Any) -> TrainedRun:
        return trained_run(saved(name), tmp_path, adapter, **settings)

    return make


def exported(run: TrainedRun) -> list[Any]:
    messages = {"conversation": [{"role": "user", "content": "What is two and two?"}]}
    ids = rendering.for_generation(run.template, question("What is two and two?"))
    return export.export(run, [CheckPrompt([1, 2, 3, 40]), CheckPrompt(ids, messages)], [run.template.eos], TEXTS)


def written(run: TrainedRun, module: Any, kind: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return GGUF.write(run, module, folder, kind)


# -- weights


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """What torch makes of a weight; Q8_0 written down again: blocks of 32 with a float16 scale."""
    if kind == "f32" or weight.ndim == 1:
        return weight
    if kind == "bf16":
        return weight.bfloat16().float()
    if kind == "f16" or weight.shape[1] % 32:
        return weight.half().float()
    blocks = weight.view(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    whole = (blocks / scale).abs().add(0.5).floor() * blocks.sign()
    return (whole * scale.half().float()).view(weight.shape)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_come_back_bit_for_bit(name: str, kind: str, saved: Saved, tmp_path: Path) -> None:
    run = run_of(saved(name), tmp_path)
    module = load_module(run)
    reloaded = GGUF.reload(written(run, module, kind, tmp_path / "out"), Base("", "", "")).model.module
    actual, expected = dict(reloaded.named_parameters()), dict(module.named_parameters())
    assert list(actual) == list(expected)
    for key, weight in expected.items():
        assert torch.equal(actual[key], rounded(weight, kind)), key
        assert torch.equal(actual[key], tensors.decoded(weight, kind)), key
    if kind == "f32":
        with torch.no_grad():
            gap = (reloaded(IDS).logits - module(IDS).logits).abs().max()
        assert gap < 1e-4, "rotary embeddings, epsilon and head sizes are in the file too"


def load_module(run: TrainedRun) -> Any:
    return loading.load(run.facts.path, torch.float32).module


# Of name, shape, type and bytes of every tensor. `test_gguf_official.py` compares the same files with llama.cpp's.
DIGESTS = {
    "smollm": "c15e3fe403a640c3",
    "llama3": "978e549288053a81",
    "mistral": "24f61a63ef2505cd",
    "qwen2": "1b0f3ddcd2e94a95",
    "qwen3": "c23ba3affc986871",
}


def digest(file: Path) -> str:
    hashed = hashlib.sha256()
    for tensor in sorted(GGUFReader(file).tensors, key=lambda t: str(t.name)):
        hashed.update(f"{tensor.name} {list(map(int, tensor.shape))} {tensor.tensor_type.name}".encode())
        hashed.update(tensor.data.tobytes())
    return hashed.hexdigest()[:16]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tensors_of_a_file_are_those_that_llama_cpp_s_converter_wrote(
    name: str, saved: Saved, tmp_path: Path
) -> None:
    run = run_of(saved(name), tmp_path)
    assert digest(written(run, load_module(run), "q8_0", tmp_path / "out")) == DIGESTS[name]


def test_scaled_rotary_embeddings_are_those_of_transformers(saved: Saved, tmp_path: Path) -> None:
    """Also where the original context is not the 8192 that llama.cpp's converter takes for granted."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rope = {**families.LLAMA3, "factor": 8.0, "original_max_position_embeddings": 256}
    config = AutoConfig.from_pretrained(saved("llama3"), rope_parameters=rope)
    plain = AutoConfig.from_pretrained(
        saved("smollm"), head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}
    )
    scaled, base = (AutoModelForCausalLM.from_config(c).model.rotary_emb.inv_freq for c in (config, plain))
    factors = architecture.rope_factors(config)
    assert factors is not None
    assert torch.allclose(base / factors, scaled, rtol=1e-6, atol=0)
    assert set(factors.tolist()) > {1.0, 8.0}, "some are kept, some stretched, some between"


# -- the vocabulary


@pytest.mark.parametrize("split", ["smollm", "gpt-2", "qwen2", "llama-bpe", "tekken"])
def test_a_split_is_known_by_what_it_does(split: str, saved: Saved, tmp_path: Path) -> None:
    run = run_of(saved("smollm"), tmp_path)
    run = replace(run, template=replace(run.template, tokenizer=bpe(split)))
    assert vocabulary.split_name(run) == split
    assert vocabulary.unsupported(run) is None


def test_an_unknown_split_is_refused_unless_the_base_s_file_names_it(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import pre_tokenizers

    run = run_of(saved("smollm"), tmp_path)
    file = written(run, load_module(run), "f16", tmp_path / "out")
    tokenizer = bpe("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    run = replace(run, template=replace(run.template, tokenizer=tokenizer))
    assert "splits text in a way" in str(vocabulary.unsupported(run))
    of_gguf = replace(run, facts=replace(run.facts, name=str(file)))
    assert vocabulary.split_name(of_gguf) == "smollm"
    assert vocabulary.unsupported(of_gguf) is None
    monkeypatch.setenv("HOME", str(file.parent))
    assert vocabulary.split_name(replace(run, facts=replace(run.facts, name=f"~/{file.name}"))) == "smollm"


def test_tokens_have_the_types_that_llama_cpp_expects(saved: Saved, tmp_path: Path) -> None:
    run = run_of(saved("smollm"), tmp_path)
    reader = GGUFReader(written(run, load_module(run), "f16", tmp_path / "out"))

    def value(key: str) -> Any:
        return reader.get_field(f"tokenizer.ggml.{key}").contents()

    tokens, types = value("tokens"), value("token_type")
    kinds = {token: types[tokens.index(token)] for token in ("<|im_start|>", "<|im_end|>", "<tool_call>", "a")}
    assert kinds == {"<|im_start|>": 3, "<|im_end|>": 3, "<tool_call>": 4, "a": 1}
    assert tokens[-3:] == [f"[PAD{i}]" for i in range(len(tokens) - 3, len(tokens))]
    assert types[-3:] == [5, 5, 5]
    assert len(tokens) == run.facts.vocabulary
    assert (value("eos_token_id"), value("add_bos_token")) == (run.template.eos, False)


def with_template(text: str | None, **arguments: Any) -> Template:
    return Template(SimpleNamespace(chat_template=text), arguments)


@pytest.mark.parametrize("name", DECODINGS)
def test_a_file_says_how_its_tokens_are_chosen(name: str, saved: Saved, tmp_path: Path) -> None:
    run = run_of(saved("smollm"), tmp_path)
    run.run.verdict.parent.mkdir()
    run.run.verdict.write_text(json.dumps({"arms": {"tuned": {"decoding": name}}}))
    reader = GGUFReader(written(run, load_module(run), "f16", tmp_path / "out"))
    written_as = {key: field for key, field in reader.fields.items() if key.startswith("general.sampling.")}
    values = {key.removeprefix("general.sampling."): field.contents() for key, field in written_as.items()}
    assert values == pytest.approx(DECODINGS[name].gguf)
    whole = {key for key, value in values.items() if isinstance(value, int)}
    assert whole == {"top_k", "penalty_last_n"} & values.keys()


@pytest.mark.parametrize("path", stock_templates(), ids=lambda p: p.stem)
def test_what_is_put_before_a_chat_template_changes_no_text(path: Path) -> None:
    """The arguments of the run are there too: programs that read GGUF files do not know them."""
    from transformers.utils.chat_template_utils import _compile_jinja_template as compiled

    text = path.read_text(encoding="utf-8")
    stored = vocabulary.chat_template(with_template(text, enable_thinking=False))
    assert stored is not None
    assert len(stored) > len(text) + 200, "Ollama takes templates that differ in less than 100 for its own"
    users = ({"role": "user", "content": " A?\n"}, {"role": "user", "content": "C"})
    turns = [users[0], {"role": "assistant", "content": "B."}, users[1]]
    for open_turn in (True, False):
        given = {"messages": turns, "add_generation_prompt": open_turn, "bos_token": "<s>", "eos_token": "</s>"}
        try:
            expected = compiled(text).render(**given, enable_thinking=False)
        except TemplateError as refused:
            with pytest.raises(type(refused)):
                compiled(stored).render(**given)
        else:
            assert compiled(stored).render(**given) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    )
)
@example("🚀 %} {{ \\ \" ' \n\x00")
@example({"null": None, "none": [None, True]})
def test_arguments_of_a_template_keep_their_values(value: Any) -> None:
    """The oracle is Jinja, which is also where they go."""
    from transformers.utils.chat_template_utils import _compile_jinja_template as compiled

    seen: list[Any] = []
    stored = vocabulary.chat_template(with_template("{{ look(value) }}", value=value))
    assert stored is not None
    compiled(stored).render(look=seen.append)
    assert seen == [value]


def test_a_template_that_begins_with_white_space_gets_no_comment() -> None:
    """`lstrip_blocks` removes white space at the beginning of a line, but not after a comment."""
    assert vocabulary.chat_template(with_template("\n  {% if x %}a{% endif %}")) == "\n  {% if x %}a{% endif %}"
    assert vocabulary.chat_template(with_template(None)) is None


# -- the whole export


def test_every_type_is_a_file_with_a_check_of_its_own(source: Callable[..., TrainedRun]) -> None:
    run = source(export__to=["gguf", "lora-gguf"], export__gguf=["f32", "f16", "q8_0", "f16"])
    lora, *files = exported(run)
    assert [(c.kind, c.dtype, Path(c.path).name) for c in files] == [
        ("gguf", kind, f"one-{kind.upper()}.gguf") for kind in ("f32", "f16", "q8_0")
    ]
    assert sorted(p.name for p in (run.run.path / "gguf").iterdir()) == sorted(Path(c.path).name for c in files)
    assert files[0].largest_difference < 1e-4
    assert all(c.rows == len(TEXTS) and c.encoded == 1 and c.tokenizer is not None for c in files)
    assert 0 <= files[0].kl < 1e-8 < files[2].kl < 0.02
    assert (lora.kind, lora.tokenizer, lora.largest_difference) == ("lora-gguf", None, 0.0)


def test_a_type_that_is_made_from_the_float32_file_leaves_that_file(
    source: Callable[..., TrainedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without llama.cpp, which only quantises: a copy stands for what it makes."""
    monkeypatch.setattr(llama_cpp, "require", lambda kind: None)
    monkeypatch.setattr(llama_cpp, "quantise", lambda file, to, kind: shutil.copy(file, to))
    run = source(export__to=["gguf"], export__gguf=["f32", "q6_k", "f16"])
    assert [Path(c.path).name for c in exported(run)] == ["one-F32.gguf", "one-Q6_K.gguf", "one-F16.gguf"]
    assert len(list((run.run.path / "gguf").iterdir())) == 3, "nothing is left over"


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize("rank", [4, 8, 16, 24])
@pytest.mark.parametrize("name", ["smollm", "qwen2"])
def test_an_adapter_is_the_trained_one_whatever_its_scaling(
    name: str, rank: int, kind: Any, source: Callable[..., TrainedRun]
) -> None:
    """llama.cpp computes alpha/rank for rsLoRA too; its own converter writes an alpha that is wrong by sqrt(rank)."""
    run = source(name, AdapterConfig(kind=kind, rank=rank, alpha=12.0), export__to=["lora-gguf"])
    (check,) = exported(run)
    assert check.largest_difference < 1e-5
    field = GGUFReader(check.path).get_field("adapter.lora.alpha")
    assert field is not None
    assert field.contents() == pytest.approx({"lora": 12.0, "rslora": 12.0 * rank**0.5}[kind], rel=1e-6)


# -- planted: each of these files loads in llama.cpp, and answers otherwise without a word


def rows_in_transformers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "interleaved", lambda name, rows, config, back=False: rows)


def keys_in_the_heads_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tensors.interleaved
    monkeypatch.setattr(
        tensors, "interleaved", lambda name, *rest, **more: right(name.replace("k_proj", "q_proj"), *rest, **more)
    )


def number(monkeypatch: pytest.MonkeyPatch, method: str, value: float) -> None:
    import gguf

    right = getattr(gguf.GGUFWriter, method)
    monkeypatch.setattr(gguf.GGUFWriter, method, lambda writer, _: right(writer, value))


def another_rope_base(monkeypatch: pytest.MonkeyPatch) -> None:
    number(monkeypatch, "add_rope_freq_base", 500.0)


def another_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    number(monkeypatch, "add_layer_norm_rms_eps", 1e-2)


def another_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "split_name", lambda source: "gpt-2")


def a_newline_less_in_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CHATML.replace("<|im_end|>\n", "<|im_end|>")
    monkeypatch.setattr(vocabulary, "chat_template", lambda template: text)


def special_tokens_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    right = gguf.GGUFWriter.add_token_types
    monkeypatch.setattr(gguf.GGUFWriter, "add_token_types", lambda writer, types: right(writer, [1] * len(types)))


def the_base_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.LoRALinear, "merged_weight", lambda layer: layer.base.weight)


def rounded_to_fewer_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in what is expected to come back."""
    right = tensors.encode
    monkeypatch.setattr(tensors, "encode", lambda weight, kind: right(weight.bfloat16().float(), kind))


def no_rope_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "rope_factors", lambda config: None)


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = [
    (rows_in_transformers_order, "smollm", "is not the trained one"),
    (keys_in_the_heads_of_queries, "mistral", "is not the trained one"),
    (another_rope_base, "qwen2", "differs from the trained one"),
    (another_epsilon, "smollm", "differs from the trained one"),
    (no_rope_factors, "llama3", "differs from the trained one"),
    (the_base_instead, "qwen3", "differs from the trained one"),
    (rounded_to_fewer_bits, "smollm", "differs from the trained one"),
    (another_split, "smollm", "splits 1 of 3 rows differently"),
    (special_tokens_as_text, "smollm", "encodes a prompt differently"),
    (a_newline_less_in_the_template, "smollm", "encodes a prompt differently"),
]


@pytest.mark.parametrize(("plant", "name", "message"), PLANTED, ids=[plant.__name__ for plant, *_ in PLANTED])
def test_a_wrong_file_is_refused(
    plant: Callable[[pytest.MonkeyPatch], None],
    name: str,
    message: str,
    source: Callable[..., TrainedRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = source(name, export__to=["gguf"], export__gguf=["f32"])
    plant(monkeypatch)
    with pytest.raises(TrainError, match=message) as caught:
        exported(run)
    assert caught.value.code == "EXPORT_MISMATCH"
    assert not list(run.run.path.glob("*gguf*"))


@pytest.mark.parametrize("wrong", ["alpha", "rows"])
def test_a_wrong_adapter_is_refused(
    wrong: str, source: Callable[..., TrainedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alpha of llama.cpp's converter; rows of B in the order of transformers."""
    import gguf

    run = source("smollm", AdapterConfig(kind="rslora", rank=4, alpha=12.0), export__to=["lora-gguf"])
    right = gguf.GGUFWriter.add_float32
    if wrong == "alpha":
        monkeypatch.setattr(gguf.GGUFWriter, "add_float32", lambda writer, key, value: right(writer, key, value / 2))
    else:
        real, writing = tensors.interleaved, lora.LORA_GGUF.write

        def write(*given: Any) -> Path:
            tensors.interleaved = lambda name, rows, config, back=False: rows  # type: ignore[assignment]
            try:
                return writing(*given)
            finally:
                tensors.interleaved = real

        monkeypatch.setitem(EXPORTS, "lora-gguf", replace(lora.LORA_GGUF, write=write))
    with pytest.raises(TrainError, match="differs from the trained one"):
        exported(run)


# -- refused before training


def refusal(run: TrainedRun) -> str:
    with pytest.raises(ConfigError) as caught:
        export.require_supported(run)
    assert (caught.value.code, caught.value.where) == ("CONFIG_CONFLICT", "export.to")
    return str(caught.value)


def test_what_cannot_be_written_is_refused_in_a_line(saved: Saved, tmp_path: Path, model_folder: Any) -> None:
    to = {"export__to": ["gguf"]}
    assert "is not a byte-level BPE" in refusal(run_of(model_folder("llama"), tmp_path, **to))
    other = refusal(run_of(model_folder("gemma3_text"), tmp_path, **to))
    assert "the architecture gemma3_text is none of llama, mistral, qwen2, qwen3; export.llama_cpp=FOLDER" in other
    dora = run_of(saved("smollm"), tmp_path, AdapterConfig(kind="dora", rank=4), export__to=["lora-gguf"])
    assert "llama.cpp has no DoRA" in refusal(dora)
    folder = families.save("smollm", tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    for key, value, message in (
        ("hidden_act", "gelu", "llama.cpp computes with hidden_act=silu"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}, "of the type yarn"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        assert message in refusal(run_of(folder, tmp_path, **to))


def test_a_type_that_only_llama_cpp_makes_needs_its_package(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    run = run_of(saved("smollm"), tmp_path, export__to=["gguf"], export__gguf=["f16", "q4_k_m"])
    with pytest.raises(MissingExtra, match=r"the type q4_k_m requires .* `pip install llama-cpp-python`"):
        export.require_supported(run)


def test_a_failure_of_llama_cpp_s_converter_is_one_line(
    source: Callable[..., TrainedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "ARCHITECTURES", {})
    run = source("smollm", export__to=["gguf"], export__llama_cpp=str(tmp_path))
    assert "export.llama_cpp=FOLDER" in refusal(run)
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such architecture')")
    with pytest.raises(TrainError, match=r"convert_hf_to_gguf\.py failed: no such architecture") as caught:
        exported(run)
    assert caught.value.code == "EXPORT_FAILED"
    assert not list(run.run.path.glob("*gguf*"))


def test_a_base_with_scaled_rotary_embeddings_is_not_read_without_them(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' reader of GGUF files drops the scaling without a word."""
    monkeypatch.setenv("TUNEWRIGHT_CACHE", str(tmp_path / "cache"))
    run = run_of(saved("llama3"), tmp_path)
    file = written(run, load_module(run), "f16", tmp_path / "out")
    with pytest.raises(ModelError, match="scales its rotary embeddings") as caught:
        loading.resolve(str(file))
    assert caught.value.code == "MODEL_UNSUPPORTED"
