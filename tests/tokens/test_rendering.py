"""What is trained is what is served, token for token, for real templates and awkward texts."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import CHATML, byte_tokenizer, stock_templates, stock_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.core.errors import DataError, ModelError
from tunewright.data.messages import Chat, Message, Text
from tunewright.tokens.rendering import completion_ids, decode, for_generation, for_training
from tunewright.tokens.template import Template, fitted, load_template

TEMPLATES = stock_templates()
TWO_TURNS = Chat(
    (
        Message("user", "What is two and two?"),
        Message("assistant", "It is four."),
        Message("user", "And three more?"),
        Message("assistant", "Then it is seven."),
    ),
    "rows.jsonl:1",
)


def outcome(path: Path) -> str:
    """ "one", "per turn", or the error code; asserts everything that must be true of a training sequence."""
    try:
        template = fitted(Template(stock_tokenizer(path.read_text(encoding="utf-8"))))
        sequences = for_training(template, TWO_TURNS)
    except (DataError, ModelError) as error:
        code = error.problems[0].code
        return code
    turns = [1, 3]
    assert len(sequences) in (1, 2)
    for place, k in enumerate(turns):
        sequence = sequences[0] if len(sequences) == 1 else sequences[place]
        prompt = for_generation(template, TWO_TURNS.before(k))
        assert list(sequence.ids[: len(prompt)]) == prompt, "served prompt = trained prefix"
        assert sequence.weights[len(prompt)] == 1, "the first token of an answer is learned"
        assert sequence.weights[len(prompt) - 1] == 0, "the last token of a prompt is not"
    for place, sequence in enumerate(sequences):
        learned = [i for i, w in zip(sequence.ids, sequence.weights, strict=True) if w]
        printed = template.tokenizer.decode(learned)
        answers = (
            ["It is four.", "Then it is seven."] if len(sequences) == 1 else [TWO_TURNS.messages[turns[place]].content]
        )
        assert all(a in printed for a in answers)
        assert "What is two" not in printed
        last = max(t for t, w in enumerate(sequence.weights) if w)
        assert sequence.ids[last] in template.tokenizer.all_special_ids, (
            "an answer's last learned token stops the model"
        )
    return "one" if len(sequences) == 1 else "per turn"


def test_stock_templates_have_one_of_three_outcomes() -> None:
    """All stock templates that TRL ships; the code knows none of them by name."""
    actual = {path.stem: outcome(path) for path in TEMPLATES}
    kinds = Counter("refused" if v.isupper() else v for v in actual.values())
    assert len(actual) >= 28
    assert all(v in ("one", "per turn") or v.startswith("TEMPLATE_") for v in actual.values()), actual
    assert kinds["one"] >= 14, actual
    assert kinds["per turn"] >= 3, actual
    assert actual["llama3"] == actual["qwen2_5"] == actual["gemma3"] == "one"
    assert actual["qwen3"] == "per turn"


def test_a_template_that_serves_something_else_is_refused_with_the_place() -> None:
    template = Template(
        byte_tokenizer(
            CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
        )
    )
    with pytest.raises(DataError) as caught:
        for_training(template, TWO_TURNS)
    assert caught.value.code == "TEMPLATE_NOT_PREFIX"
    assert caught.value.where == "rows.jsonl:1"


def test_a_template_that_opens_a_thought_can_be_fixed_by_its_own_switch() -> None:
    switched = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n"
        "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}",
    )
    template = fitted(Template(byte_tokenizer(switched)))
    assert template.kwargs == {"enable_thinking": False}
    assert len(for_training(template, TWO_TURNS)) == 1


def test_a_template_that_writes_the_date_writes_the_runs(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """Trained on one day and served on another: the same prompt."""
    (tmp_path / "dated.jinja").write_text("Today: {{ strftime_now('%d %b %Y') }}\n" + CHATML)
    folder, file = model_folder("llama"), str(tmp_path / "dated.jinja")
    then = load_template(folder, file, "2024-07-26")
    (row,) = for_training(then, TWO_TURNS)
    assert decode(then, row.ids).startswith("Today: 26 Jul 2024")
    assert for_generation(then, TWO_TURNS.before(1))[:20] == list(row.ids[:20])
    now = load_template(folder, file)
    assert now.day == datetime.date.today()
    assert decode(now, for_generation(now, TWO_TURNS.before(1))).startswith(f"Today: {now.day:%d %b %Y}")
    assert now.sha256 != then.sha256
    assert load_template(folder, None, "2024-07-26").sha256 == load_template(folder).sha256, (
        "a template without a date has none"
    )


def test_a_template_that_drops_the_system_message_is_refused() -> None:
    silent = (
        "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = Chat((Message("system", "Be brief."), *TWO_TURNS.messages), "x:1")
    with pytest.raises(DataError) as caught:
        for_training(Template(byte_tokenizer(silent)), chat)
    assert caught.value.code == "TEMPLATE_LOSES_CONTENT"


def test_a_template_without_end_of_turn_gets_the_tokenizers() -> None:
    plain = (
        "{% for m in messages %}{{ m['role'] }}: "
        "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    template = Template(byte_tokenizer(plain, "</s>", special=("</s>",)))
    for sequence in for_training(template, TWO_TURNS):
        assert sequence.ids[-1] == template.eos
        assert sequence.weights[-1] == 1


@pytest.mark.parametrize("end", ["", "<end>", "<end> \n", "</s>\n"])
def test_marks_of_thoughts_do_not_end_an_answer(end: str) -> None:
    """A template may write thoughts between special tokens and no end mark of its own."""
    thinking = (
        "{% for m in messages %}{{ m['role'] }}: {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
        "{% endif %}{{ m['content'] }}{{ '" + end.replace("\n", "\\n") + "' if m['role'] == 'assistant' else '' }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    template = Template(byte_tokenizer(thinking, "</s>", special=("<think>", "</think>", "<end>", "</s>")))
    chat = Chat((TWO_TURNS.messages[0], Message("assistant", "It is four.", reasoning="hm")), "x:1")
    (sequence,) = for_training(template, chat)
    learned = [i for i, w in zip(sequence.ids, sequence.weights, strict=True) if w]
    assert template.tokenizer.decode(learned) == "<think>hm</think>It is four." + (end.strip() or "\n</s>")
    assert completion_ids(template, chat.before(1), "It is four.")[-1] == learned[-1]


def test_special_tokens_that_contain_others_are_plain_text_in_messages() -> None:
    special = ("<|im_start|>", "<|im_end|>", "<<s>>", "<s>", "s>>")
    template = Template(byte_tokenizer(special=special))
    spelled = "<<s>> <s>>"
    chats = (Chat((Message("user", "q"), Message("assistant", spelled)), "x:1"), Text(spelled, "x:1"))
    for example in chats:
        (sequence,) = for_training(template, example)
        ids = [template.tokenizer.convert_tokens_to_ids(s) for s in special[2:]]
        assert not set(ids) & set(sequence.ids)
        assert spelled in template.tokenizer.decode(sequence.ids)


def test_double_bos_is_refused() -> None:
    twice = "<s><s>" + CHATML
    template = Template(byte_tokenizer(twice, bos="<s>", special=("<|im_start|>", "<|im_end|>", "<s>")))
    with pytest.raises(ModelError) as caught:
        for_training(template, TWO_TURNS)
    assert caught.value.code == "TOKENIZER_DOUBLE_BOS"


def test_a_base_model_without_template_says_so() -> None:
    with pytest.raises(ModelError) as caught:
        for_training(Template(byte_tokenizer(None)), TWO_TURNS)
    assert caught.value.code == "TEMPLATE_MISSING"


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Co")), min_size=1, max_size=40).filter(
    lambda t: t.strip()
)
spelled = (
    st.lists(
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_start|>",
                "<|im_",
                "end|>",
                "<",
                "|",
                ">",
                "a",
                " ",
                "<|im_end|>\n<|im_start|>assistant\n",
            ]
        ),
        min_size=1,
        max_size=6,
    )
    .map("".join)
    .filter(lambda t: t.strip())
)


@settings(max_examples=150, deadline=None)
@given(st.lists(texts | spelled, min_size=2, max_size=6).map(lambda x: x[: len(x) // 2 * 2]), st.booleans())
def test_any_chat_served_is_trained_and_spells_no_special_token(contents: list[str], system: bool) -> None:
    """For any conversation, the served prompt is a prefix of the training sequence, each turn ends with the stop token,
    and a message that spells a special token neither becomes that token nor loses a character."""
    head = (Message("system", "Answer."),) if system else ()
    chat = Chat((*head, *(Message(("user", "assistant")[i % 2], c) for i, c in enumerate(contents))), "x:1")
    template = Template(byte_tokenizer())
    (sequence,) = for_training(template, chat)
    ids = list(sequence.ids)
    start, end = template.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids.count(start) == ids.count(end) == len(chat.messages)
    assert template.tokenizer.decode(ids) == "".join(
        f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in chat.messages
    )
    for k, message in enumerate(chat.messages):
        if message.role == "assistant":
            prompt = for_generation(template, chat.before(k))
            assert ids[: len(prompt)] == prompt
            answer = completion_ids(template, chat.before(k), message.content)
            assert ids[len(prompt) : len(prompt) + len(answer)] == answer
            assert answer[-1] == end
            assert decode(template, answer) == message.content
    assert sum(sequence.weights) == sum(len(m.content.encode()) + 1 for m in chat.messages if m.role == "assistant")


def test_documents_are_cut_without_losing_or_repeating_a_prediction() -> None:
    template = Template(byte_tokenizer(None))
    text = "".join(chr(97 + i % 26) for i in range(100)) + "<|im_end|>" + "é" * 20
    pieces = for_training(template, Text(text, "doc.md"), 0, 16)
    body = [i for p in pieces for i in p.ids[1:]]
    assert template.tokenizer.decode([pieces[0].ids[0], *body[:-1]]) == text
    assert body[-1] == template.eos
    assert body.count(template.eos) == 1, "the spelled end token stays text"
    assert all(len(p.ids) <= 16 for p in pieces)
    assert all(p.ids[0] == q.ids[-1] for q, p in itertools.pairwise(pieces))


def joining_tokenizer() -> Any:
    """`byte_tokenizer` with tokens for two white-space characters, so that one may span the end of a prompt."""
    from tokenizers import models

    tokenizer = byte_tokenizer()
    vocabulary = dict(tokenizer.get_vocab())
    merges = [(a, b) for a in "ĊĠĉ" for b in "ĊĠĉ"]
    for a, b in merges:
        vocabulary[a + b] = len(vocabulary)
    tokenizer.backend_tokenizer.model = models.BPE(vocab=vocabulary, merges=merges)
    return tokenizer


@pytest.mark.parametrize("answer", ["\n\nfine", "  text", " \ntext", "\t\ttext", "    return x", "\n\n<|im_end|> x"])
@pytest.mark.parametrize("question", ["q", "a <|im_start|> b"])
def test_an_answer_that_begins_with_white_space_is_learned_whole(answer: str, question: str) -> None:
    """Where the prompt's last token and the answer's first would be one, and whether or not they spell special
    tokens."""
    template = Template(joining_tokenizer())
    turns = tuple(Message(role, text) for role, text in [("user", question), ("assistant", answer)] * 2)
    spanned = template.tokenizer(f"assistant\n{answer}", add_special_tokens=False)["input_ids"]
    assert spanned[:10] != template.tokenizer("assistant\n", add_special_tokens=False)["input_ids"]
    for chat in (Chat(turns[:2], "x:1"), Chat(turns, "x:1")):
        learned = [
            decode(template, [i for i, w in zip(s.ids, s.weights, strict=True) if w])
            for s in for_training(template, chat)
        ]
        assert "".join(learned) == answer * (len(chat.messages) // 2)
