"""Tags of words: against transformers' own class for encoders and decoders, in any layout of a pass; spans by hand;
rows that are wrong; runs and their exports."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders as tiny
import torch
import torch.nn.functional as F
from build import LORA, QUICK, byte_tokenizer, cli, exact_norms, plan_of, printed_by, read, tiny_lm
from hypothesis import given
from hypothesis import strategies as st

from tunewright import api
from tunewright.core.config import AdapterConfig, Plan, load
from tunewright.core.errors import TunewrightError
from tunewright.core.run_folder import Run
from tunewright.data import dataset
from tunewright.data.messages import Chat, Message, question
from tunewright.data.scores import Answer, Written
from tunewright.data.task import tag_baselines, tags
from tunewright.export import tagger
from tunewright.judge.chat_model import ChatModel
from tunewright.methods import METHODS, tag
from tunewright.model import adapters
from tunewright.model.decoding.generate import Decoding
from tunewright.model.language_model import LanguageModel
from tunewright.runtime import chat
from tunewright.tokens import encoder_text
from tunewright.tokens.sequences import TrainRow
from tunewright.tokens.template import Template

TAGS = ("B-x", "I-x", "O")
ROWS = [
    ("a house by the river", "O B-x O O B-x"),
    ("a house", "O O"),
    ("fire", "B-x"),
    ("a house by the sea side", "O B-x O O B-x I-x"),
    ("x y", "B-x I-x"),
]
CHATS = [Chat((Message("user", t), Message("assistant", y)), f"x:{i}") for i, (t, y) in enumerate(ROWS)]
DECODER = Template(byte_tokenizer(), encoder=True)


def prepared(template: Template) -> list[TrainRow]:
    return [METHODS["tag"].prepare(template, chat, i, 512)[0] for i, chat in enumerate(CHATS)]


def plan(**more: Any) -> Plan:
    return plan_of(**{"method": "tag", "labels": TAGS, "layout": "padded", "batch_size": 3, "lr": 5e-3, **more})


def headed(kind: str, adapter: AdapterConfig = LORA, drawn: bool = True) -> LanguageModel:
    model = tiny.encoder(kind) if kind in tiny.KINDS else tiny_lm(kind, torch.float64, vocabulary=300)
    if not model.encoder:
        exact_norms(model.module)
    adapters.attach(model.module, adapter, 1, len(TAGS))
    draw = torch.Generator().manual_seed(3)
    for name, p in adapters.trainable(model.module).items():
        if drawn and ("lora_B" in name or name == "score.weight"):
            torch.nn.init.normal_(p, std=0.3, generator=draw)
    return model


def loss_and_gradient(model: LanguageModel, rows: list[TrainRow], asked: Plan) -> tuple[float, dict[str, torch.Tensor]]:
    method = METHODS["tag"]
    model.module.zero_grad(set_to_none=True)
    parts = method.microbatches(model, rows, range(len(rows)), asked, 0)
    weight, total = sum(map(method.weight, parts)), 0.0
    assert weight == sum(len(y.split()) for _, y in ROWS)
    for part in parts:
        loss = method.loss(model, part, asked).sum / weight
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}


PASSES = [("padded", 4096), ("padded", 60), ("shared", 4096), ("shared", 60), ("packed", 60)]


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert", "llama", "qwen3"])
def test_loss_and_gradient_are_those_of_transformers_own_class(kind: str) -> None:
    """Words are given to the tokenizer as its users do; only the first token of each has a label."""
    from transformers import AutoModelForTokenClassification

    encoder = kind in tiny.KINDS
    template = tiny.TEMPLATE if encoder else DECODER
    model, rows = headed(kind, AdapterConfig(kind="none")), prepared(template)
    config = type(model.module.config)(**{**model.module.config.to_dict(), "id2label": dict(enumerate(TAGS))})
    theirs = AutoModelForTokenClassification.from_config(config).to(torch.float64).eval()
    theirs.base_model.load_state_dict(model.module.base_model.state_dict(), strict=False)
    exact_norms(theirs) if not encoder else None
    last = theirs.classifier if encoder else theirs.score
    last.weight.data.copy_(model.module.score.weight)
    last.bias.data.zero_()
    encoded = [template.tokenizer(text, return_offsets_mapping=True) for text, _ in ROWS]
    longest = max(len(e["input_ids"]) for e in encoded)
    ids, seen, labels = (torch.full((len(ROWS), longest), fill) for fill in (1, 0, -100))
    for n, ((text, answer), e) in enumerate(zip(ROWS, encoded, strict=True)):
        ids[n, : len(e["input_ids"])] = torch.tensor(e["input_ids"])
        seen[n, : len(e["input_ids"])] = 1
        for word, wanted in zip(re.finditer(r"\S+", text), answer.split(), strict=True):
            first = next(i for i, (_, end) in enumerate(e["offset_mapping"]) if end > word.start())
            labels[n, first] = TAGS.index(wanted)
    output = theirs(ids, attention_mask=seen, labels=labels)
    # Of a decoder, their loss is computed in float32.
    expected = output.loss if encoder else F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    expected.backward()
    named = {n.partition(".")[2] if encoder else n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    named = {n.replace("weight", "score.weight") if n == "weight" else n: g for n, g in named.items() if n != "bias"}
    for layout, capacity in PASSES[: 2 if encoder else None]:
        loss, gradient = loss_and_gradient(model, rows, plan(layout=layout, tokens_per_pass=capacity))
        assert loss == pytest.approx(float(expected.detach()), abs=1e-10)
        for name, g in named.items():
            if name in gradient:
                assert torch.allclose(gradient[name], g, rtol=0, atol=1e-10), name
        assert len({*named} & {*gradient}) >= len(named) - 1, "the bias of their last layer"


def test_the_first_loss_is_that_of_equally_probable_tags() -> None:
    loss, gradient = loss_and_gradient(headed("bert", drawn=False), prepared(tiny.TEMPLATE), plan())
    assert loss == pytest.approx(math.log(3), abs=1e-12)
    assert gradient["score.weight"].any()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_words_are_tagged_together_as_alone(kind: str) -> None:
    template = tiny.TEMPLATE if kind == "bert" else DECODER
    model, prompts = headed(kind), [c.prompt for c in CHATS]
    for layout in ("padded",) if kind == "bert" else ("shared", "packed", "padded"):
        answering = ChatModel(model, template, Decoding(4, (256,)), plan(layout=layout, tokens_per_pass=60))
        together = answering.by_head(prompts)
        assert together == [answering.by_head([prompt])[0] for prompt in prompts]
        assert [len(a.text.split()) for a in together] == [len(t.split()) for t, _ in ROWS]


# -- words and tokens


@given(st.lists(st.text("aé.,-ß中", min_size=1, max_size=4), min_size=1, max_size=5))
def test_each_word_begins_at_its_first_token(words: list[str]) -> None:
    for template in (tiny.TEMPLATE, DECODER):
        ids, starts = encoder_text.with_words(template.tokenizer, question(" ".join(words)))
        assert ids == template.tokenizer(" ".join(words))["input_ids"]
        assert len(starts) == len(words)
        for start, end, word in zip(starts, [*starts[1:], None], words, strict=True):
            text = template.tokenizer.decode(ids[start:end], skip_special_tokens=True)
            assert text.strip() == word


def test_a_word_without_a_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("·", "")
    with pytest.raises(TunewrightError, match="no token of its own"):
        encoder_text.with_words(tokenizer, question("a · b"))
    with pytest.raises(TunewrightError, match="special token"):
        encoder_text.with_words(tokenizer, question("a <|im_end|> b"))


# -- spans and metrics


@pytest.mark.parametrize(
    ("given_tags", "spans"),
    [
        ("O O", []),
        ("B-A I-A O B-B", [("A", 0, 2), ("B", 3, 4)]),
        ("B-A B-A", [("A", 0, 1), ("A", 1, 2)]),
        ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),
        ("O I-A I-A", [("A", 1, 3)]),
        ("I-A O I-A", [("A", 0, 1), ("A", 2, 3)]),
        ("S-A B-A I-A E-A S-A", [("A", 0, 1), ("A", 1, 4), ("A", 4, 5)]),
        ("B-A E-A I-A", [("A", 0, 2), ("A", 2, 3)]),
        ("U-A B-A L-A O", [("A", 0, 1), ("A", 1, 3)]),
        ("B I O B", [("", 0, 2), ("", 3, 4)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
    ],
)
def test_spans_are_those_of_conlleval(given_tags: str, spans: list[tags.Span]) -> None:
    assert tags.spans(given_tags.split()) == set(spans)


def chats(*rows: tuple[str, str]) -> list[Chat]:
    return [Chat((Message("user", t), Message("assistant", y)), f"x:{i}") for i, (t, y) in enumerate(rows)]


def test_entity_f1_by_hand() -> None:
    """Targets: A(0,2) B(3,4); one is answered right, one with another end, and one that is none."""
    examples = chats(("a b c d", "B-A I-A O B-B"), ("e f", "O O"))
    task = tags.detect(examples)
    assert task is not None
    assert (task.kind.name, task.metric.name) == ("entities", "entity_f1")
    assert task.label_set == ("B-A", "B-B", "I-A", "O")
    answers = [Answer("B-A O O B-B", Written(0, False)), Answer("O B-B", Written(0, False))]
    scores = [task.score(e, a) for e, a in zip(examples, answers, strict=True)]
    assert [s.readings.fields for s in scores if s.readings] == [
        tags.FieldCounts(right=1, wrong=1, missed=1),
        tags.FieldCounts(right=0, wrong=1, missed=0),
    ]
    assert [s.score for s in scores] == [0.5, 0.0]
    summary = task.summary(scores)
    assert summary["entity_micro_f1"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))
    assert summary["token_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert summary["exact_match"] == 0.0
    right = [task.score(e, Answer(e.target, Written(0, False))).score for e in examples]
    assert right == [1.0, 1.0], "also of a text without entities"
    short = task.score(examples[0], Answer("B-A I-A", Written(0, False)))
    assert short.readings is not None
    assert short.readings.fields == tags.FieldCounts(right=1, wrong=0, missed=1), "tags that are missing are O"


def test_tags_that_mark_no_spans_are_judged_by_accuracy_and_macro_f1() -> None:
    examples = chats(("a b c", "N V N"), ("d", "X"))
    task = tags.detect(examples)
    assert task is not None
    assert (task.kind.name, task.metric.name) == ("tags", "token_accuracy")
    scores = [task.score(e, Answer(y, Written(0, False))) for e, y in zip(examples, ("N N N", "X"), strict=True)]
    assert [s.score for s in scores] == [pytest.approx(2 / 3), 1.0]
    assert task.summary(scores)["tag_macro_f1"] == pytest.approx((2 * 2 / (2 + 3) + 0.0 + 1.0) / 3)


def test_a_dictionary_gives_each_word_its_most_frequent_tag() -> None:
    train = chats(("Main St Main", "N T N"), ("Main road", "V T"), ("st x", "T T"))
    predict = tag_baselines.dictionary(train)
    assert predict(chats(("main Main ST unseen", "O O O O"))) == ["N N T T"]


def test_regression_reads_a_words_neighbours() -> None:
    train = chats(*[(f"a{i} to b{i}", "P O Q") for i in range(8)], *[(f"to b{i}", "O Q") for i in range(4)])
    assert tag_baselines.linear(train)(chats(("zz to yy", "O O O"))) == ["P O Q"]


# -- rows


@pytest.mark.parametrize(
    ("row", "settings", "code", "what"),
    [
        ({"tokens": ["a", "b", "c"], "tags": ["O", "B-x"]}, [], "DATA_LABEL", "3 tokens and 2 tags"),
        ({"tokens": ["a b"], "tags": ["O"]}, [], "DATA_LABEL", "white space"),
        ({"tokens": ["a"], "tags": ["O x"]}, [], "DATA_LABEL", "white space"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, [], "DATA_EMPTY_TARGET", "tokens[1]"),
        ({"tokens": ["a"], "tags": [1]}, [], "DATA_LABEL", "data.label_names"),
        ({"tokens": ["a"], "tags": ["U"]}, ["data.label_names=[O, B-x]"], "DATA_LABEL", "not in data.label_names"),
        ({"tokens": ["a"], "tags": [7]}, ["data.label_names=[O, B-x]"], "DATA_LABEL", "7"),
        ({"tokens": "a b", "tags": ["O", "O"]}, [], "DATA_FIELD_TYPE", "lists"),
        ({"text": "a b", "labels": ["O", "O"]}, [], "DATA_FIELD_MISSING", "'tokens' of a tokens_tags row"),
    ],
)
def test_wrong_rows_are_refused_with_their_place(
    row: dict[str, Any], settings: list[str], code: str, what: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"tokens": ["a", "b"], "tags": ["O", "B-x"]}) + "\n" + json.dumps(row) + "\n")
    done = cli("check", str(file), "train.method=tag", *settings, cwd=tmp_path)
    assert done.returncode == 2
    for part in (code, what, "rows.jsonl:2" if "text" not in row else "rows.jsonl:"):
        assert part in done.stderr


def test_numbers_have_names_and_misplaced_tags_are_a_warning(tmp_path: Path) -> None:
    rows = [{"tokens": [f"w{i}", "b", "c"], "ner_tags": [0, 2, 1 if i % 2 else 0], "id": i} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = dataset.load(load(None, [f"data.train={file}", "train.method=tag", "data.label_names=[O, B-x, I-x]"]))
    assert data.examples[1].target == "O I-x B-x"
    (finding,) = [f for f in data.findings() if f.code == "TAGS_ORDER"]
    assert finding.level == "warning"
    assert "I-x of word 2 follows O" in finding.message
    assert len(finding.rows) == 40


def test_other_methods_name_this_one(tmp_path: Path) -> None:
    for name in ("tags", "ner_tags"):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps({"tokens": ["a"], name: ["O"]}) + "\n")
        done = cli("check", str(file), cwd=tmp_path)
        assert "DATA_FORM_UNSUPPORTED" in done.stderr
        assert "train.method=tag learns them" in done.stderr


def test_a_tag_that_no_training_row_has_is_refused(tmp_path: Path) -> None:
    tiny.tagged(tmp_path / "rows.jsonl")
    (tmp_path / "test.jsonl").write_text(json.dumps({"tokens": ["never", "seen"], "tags": ["O", "B-new"]}) + "\n")
    done = cli("check", "rows.jsonl", "train.method=tag", "data.test=test.jsonl", cwd=tmp_path)
    assert "DATA_FORMAT_MISMATCH" in done.stderr
    assert "test.jsonl:1" in done.stderr
    assert "'B-new'" in done.stderr


# -- runs


@pytest.fixture(scope="module", params=["bert", "llama"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_folder: Any) -> api.Result:
    root = tmp_path_factory.mktemp(f"tags-{request.param}")
    model = tiny.saved(root / "model") if request.param == "bert" else model_folder("llama")
    settings = {k: v for k, v in QUICK.items() if k not in ("prove__few_shot", "prove__max_new_tokens")}
    more = {"train__method": "tag", "train__steps": 20, "train__lr": 1e-2}
    rows = tiny.tagged(root / "rows.jsonl")
    return api.run(rows, model=str(model), name="t", root=root, **{**settings, **more})


def test_a_run_is_judged_by_entities_against_a_dictionary(run: api.Result) -> None:
    verdict, planned = read(run.path, "verdict"), read(run.path, "plan")
    assert verdict["metric"] == "entity_f1"
    assert set(verdict["arms"]) == {"dictionary", "classical", "tuned"}
    assert verdict["comparator"]["name"] == "dictionary"
    assert {"entity_micro_f1", "token_accuracy"} <= set(verdict["arms"]["tuned"]["summary"])
    assert planned["labels"] == ["B-colour", "B-thing", "I-thing", "O"]
    seen = (
        "sees the whole text" if read(run.path, "receipt")["model"]["encoder"] else "sees of each word its first token"
    )
    assert seen in verdict["arms"]["tuned"]["description"]
    assert seen in (run.path / "report.html").read_text()
    lines = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["dev_loss"] == pytest.approx(math.log(4), abs=1e-6)
    assert lines[-1]["loss"] < 0.7 * math.log(4)
    assert "the model answers with its head" in read(run.path, "forgetting")["reason"]


TEXT = "red by the dog 7"


def answered(run: api.Result) -> list[str]:
    return cli("chat", str(run.path), TEXT, cwd=run.path).stdout.split()


def test_chat_answers_with_a_tag_for_each_word(run: api.Result) -> None:
    assert len(answered(run)) == 5
    assert {*answered(run)} <= {"B-colour", "B-thing", "I-thing", "O"}


def test_transformers_loads_the_export_with_equal_numbers(run: api.Result, tmp_path: Path) -> None:
    (check,) = read(run.path, "export")
    assert (check["kind"], check["encoded"]) == ("merged", check["prompts"])
    assert check["largest_difference"] < 1e-4
    assert check["reproduced"]["same"] == check["reproduced"]["rows"] > 0
    script = f"""
import json
from transformers import AutoModelForTokenClassification, AutoTokenizer
model = AutoModelForTokenClassification.from_pretrained({str(run.path / "merged")!r})
tokenizer = AutoTokenizer.from_pretrained({str(run.path / "merged")!r})
print(json.dumps([model.config.id2label["0" if "0" in model.config.id2label else 0],
      model(**tokenizer({TEXT!r}, return_tensors="pt")).logits[0].tolist()]))
"""
    first, theirs = printed_by(script, tmp_path)
    assert first == "B-colour", "the order of the labels"
    model = chat.load_run(Run(run.path))
    row = tag.sequence(model.template, chat.prompt_of(model, [Message("user", TEXT)]), 0)
    assert model.plan is not None
    answering = ChatModel(model.model, model.template, Decoding(1, ()), model.plan)
    with torch.no_grad():
        (ours_MC,) = answering._head_logits([row], lambda _: None)
    places = [t - 1 for t, w in enumerate(row.weights) if w]
    assert torch.allclose(torch.tensor(theirs)[places], torch.from_numpy(ours_MC).float(), rtol=0, atol=1e-4)


def test_the_code_of_the_card_prints_the_tags(
    run: api.Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (run.path / "merged" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run.path / "merged")
    exec(code.replace('"..."', repr(TEXT)), {})
    assert capsys.readouterr().out.strip() == str(answered(run))


def test_a_row_is_shown_with_its_tags(tmp_path: Path) -> None:
    tiny.tagged(tmp_path / "rows.jsonl")
    model = ["--model", str(tiny.saved(tmp_path / "model"))]
    done = cli("preview", "rows.jsonl", *model, "train.method=tag", cwd=tmp_path)
    assert "[CLS]r⟦/B-colour⟧ed b⟦/O⟧y" in done.stdout.replace("Ġ", " ")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["data.instruction=Tag it."], "data.instruction"),
        (["template=chatml-tools"], "template"),
        (["train.pooling=mean"], "train.pooling"),
        (["prove.few_shot=[2]"], "prove.few_shot"),
        (["export.to=[merged, gguf]"], "gguf"),
        (["adapter.start=x"], "adapter.start"),
        (["data.labels=merge"], "data.labels"),
    ],
)
def test_what_tagging_does_not_read_is_refused(settings: list[str], what: str, tmp_path: Path) -> None:
    tiny.tagged(tmp_path / "rows.jsonl")
    model = ["--model", str(tiny.saved(tmp_path / "model"))]
    done = cli("run", "rows.jsonl", *model, "train.method=tag", "train.steps=2", *settings, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "CONFIG_CONFLICT" in done.stderr
    assert what in done.stderr


def test_a_class_with_a_head_of_another_form_is_refused_before_training(tmp_path: Path) -> None:
    assert tagger.is_exact(tiny.config("bert"), encoder=True)
    assert not tagger.is_exact(tiny.config("modernbert"), encoder=True)
    tiny.tagged(tmp_path / "rows.jsonl")
    model = ["--model", str(tiny.saved(tmp_path / "model", "modernbert"))]
    done = cli("run", "rows.jsonl", *model, "train.method=tag", "train.steps=2", cwd=tmp_path)
    assert "CONFIG_CONFLICT" in done.stderr
    assert "another head" in done.stderr
