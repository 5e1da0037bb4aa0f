"""A tokenizer as GGUF: tokens and their types, merges, special tokens, the chat template, and the name under which
llama.cpp knows how text is split before merges. Byte-level BPE only."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gguf
    from pydantic import JsonValue
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from tunewright.export.kind import TrainedRun
    from tunewright.tokens.template import Template

# Tokenizers that split this text alike are taken to split every text alike: letters of several scripts, marks, digits
# of several kinds, contractions, white space and line ends in runs, punctuation, emoji.
SAMPLE = (
    "Hello world!  it's WE'LL I'm o'clock McDonald's 'tis\n\n\n \n\r\n\t\ttab  \u00a0 x=12345678 3.14159 1,000 7a a7 "
    "٣٤٥ Ⅷ ½² naïve ÉCOLE straße ЖИЗНЬ жизнь हिन्दी ไทย 中文字符 かな 한국어 \U0001f469\u200d\U0001f467 🚀🚀 ... !!! "
    "--- <a href='x'> /* y */ foo_bar a/b\r\n$5.00 €7 #1 @me {k: [1, 2]}\n    return  x   \n ende "
)
# Hash of the pieces, whether words in the vocabulary skip the merges -> the name of this way to split in llama.cpp.
SPLITS = {
    ("b003e411564e", False): "smollm",
    ("41f71ca29865", False): "qwen2",
    ("82922bc9bd05", True): "llama-bpe",
    ("63ac96190ca5", True): "tekken",
    ("10617159710b", False): "gpt-2",
}
# Tokens that are control tokens, even if the tokenizer does not call them special.
CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>|<pad>|<mask>")


def split_name(source: TrainedRun) -> str | None:
    """The name of the way in which the run's tokenizer splits text: by what it does, otherwise as in the GGUF file that
    the base was read from."""
    name = SPLITS.get(split_key(source.template.tokenizer))
    if name is None and source.facts.name.endswith(".gguf"):
        from transformers.integrations.gguf import read_gguf_metadata

        name = read_gguf_metadata(str(Path(source.facts.name).expanduser()))[0].get("tokenizer.ggml.pre")
    return name


def split_key(tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    backend = tokenizer.backend_tokenizer
    text = SAMPLE if backend.normalizer is None else backend.normalizer.normalize_str(SAMPLE)
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return hashlib.sha256("\0".join(pieces).encode()).hexdigest()[:12], backend.model.ignore_merges


def unsupported(source: TrainedRun) -> str | None:
    """Why the run's tokenizer cannot be written, or None."""
    parts = json.loads(source.template.tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or not model["merges"] or "ByteLevel" not in json.dumps(parts["pre_tokenizer"]):
        return "its tokenizer is not a byte-level BPE with merges"
    if max(source.template.tokenizer.get_vocab().values()) >= source.facts.vocabulary:
        return "its tokenizer has more tokens than the model has embeddings"
    if split_name(source) is None:
        return "its tokenizer splits text in a way that we know no name of in llama.cpp"
    return None


def write(writer: gguf.GGUFWriter, source: TrainedRun, config: PreTrainedConfig) -> None:
    """The run's tokenizer, with as many tokens as the model has embeddings."""
    from gguf import SpecialVocab, TokenType

    tokenizer = source.template.tokenizer
    tokens = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder

    def kind(i: int) -> int:
        if i not in tokens:
            return int(TokenType.UNUSED)
        if i not in added:
            return int(TokenType.NORMAL)
        control = added[i].special or CONTROL.fullmatch(tokens[i])
        return int(TokenType.CONTROL if control else TokenType.USER_DEFINED)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(source))
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(config.vocab_size)])
    writer.add_token_types([kind(i) for i in range(config.vocab_size)])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        special = SpecialVocab(folder, load_merges=True)
    # Without the key, llama.cpp decides by the name of the way to split.
    special.add_special_token.setdefault("bos", tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id])
    special.chat_template = chat_template(source.template)
    special.add_to_gguf(writer, quiet=True)


def chat_template(template: Template) -> str | None:
    """The chat template, after its arguments and a comment. Programs that read it do not know the arguments, and Ollama
    replaces a template by one of its own if they differ in fewer than 100 characters, even if its own writes something
    else.

    Neither writes anything, but white space after a comment is treated differently from white space at the beginning,
    so a template that begins with it gets none.
    """
    text = template.tokenizer.chat_template
    if not text:
        return None
    arguments = "".join(f"{{% set {name} = {_jinja(value)} %}}" for name, value in template.kwargs.items())
    mark = (
        f"{{# The chat template that the model was trained with, sha256 {hashlib.sha256(text.encode()).hexdigest()}. "
        "This comment makes it unlike any template that a program may know, so that it is not replaced by another. #}"
    )
    return f"{arguments}{text}" if text[0].isspace() else f"{mark}{arguments}{text}"


def _jinja(value: JsonValue) -> str:
    """A value as Jinja reads it: JSON, but for null, and for surrogate pairs, which it does not join."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_jinja(key)}: {_jinja(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_jinja, value))}]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
