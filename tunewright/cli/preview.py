"""`tunewright preview`: shows a row as the model sees it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from tunewright.cli.runs import Json, Model, Settings, Source, config_of, out
from tunewright.core.words import counted
from tunewright.tokens import texts
from tunewright.tokens.template import for_method, for_rows, has_thoughts, load_template


def preview(
    source: Source,
    settings: Settings = None,
    row: Annotated[int, typer.Option("--row", "-r", help="Row number, starting at 1.")] = 1,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Show a row as the model sees it, with the target tokens in green; in a file or a pipe, between ⟦ and ⟧."""
    from tunewright.core.config import EMBEDDING, HEADS, RANKERS, RATED
    from tunewright.core.errors import ConfigError
    from tunewright.core.locations import title
    from tunewright.data.remedies import prepared
    from tunewright.methods import METHODS, kto
    from tunewright.model import loading, model_files
    from tunewright.tokens.sequences import flat

    config = config_of(source, settings, model)
    parsed = prepared.read(config.data.train, config, prepared.row_settings(config)).parsed
    if not 1 <= row <= len(parsed.examples):
        raise ConfigError(
            "CONFIG_RANGE",
            f"there is no row {row}; {title(config.data.train)} has {counted(len(parsed.examples), 'row')}.",
            where="--row",
            fix=f"choose a row from 1 to {len(parsed.examples)}.",
        )
    folder = loading.resolve(config.model)
    model_files.check(folder)
    loaded = for_method(load_template(folder, config.template, config.date), config.train.method)
    template = for_rows(loaded, has_thoughts(parsed.examples))
    if config.train.method in EMBEDDING:
        template = texts.with_prefixes(template, config.embed.query_prefix, config.embed.document_prefix)
    limit = None if config.train.max_length == "auto" else config.train.max_length
    example = parsed.examples[row - 1]
    prepared_rows = METHODS[config.train.method].prepare(template, example, row - 1, limit)
    sequences = flat(prepared_rows)
    if as_json:
        decode = template.tokenizer.decode
        out([{"ids": s.ids, "weights": s.weights, "tokens": [decode([i]) for i in s.ids]} for s in sequences])
        return
    names = _names(config.train.method, len(sequences))
    if config.train.method in RATED:
        names = ["desirable" if kto.is_desirable(r) else "undesirable" for r in prepared_rows]
    for name, sequence in zip(names, sequences, strict=True):
        pieces = [(template.tokenizer.decode([i]), w) for i, w in zip(sequence.ids, sequence.weights, strict=True)]
        if config.train.method in EMBEDDING:  # nothing reads the place behind a text
            pieces = [(text, 0.0) for text, _ in pieces[:-1]]
        targets = "" if config.train.method in EMBEDDING else f", {sequence.supervised} targets"
        typer.secho(f"{example.where}, {name}: {len(pieces)} tokens{targets}", bold=True)
        if config.train.method == "tag":
            pieces = tagged(pieces, example.target.split())
        elif config.train.method in HEADS:  # the head answers in place of the last token
            pieces[-1] = ("score" if config.train.method in RANKERS else example.target, 1.0)
        typer.echo("".join(_shown(pieces)))


def _names(method: str, count: int) -> list[str]:
    """Of the sequences of a row."""
    from tunewright.core.config import EMBEDDING, PAIRED

    if method in EMBEDDING:
        return ["query", "document", *(f"negative {n}" for n in range(1, count - 1))]
    return ["chosen", "rejected"] if method in PAIRED else [f"sequence {n + 1} of {count}" for n in range(count)]


def tagged(pieces: Sequence[tuple[str, float]], tags: Sequence[str]) -> list[tuple[str, float]]:
    """The tokens of a text, each word's first one followed by its tag, which it predicts in place of the next token."""
    shown, rest = [(pieces[0][0], 0.0)], list(tags)
    for piece, weight in pieces[1:]:
        shown += [(f"/{rest.pop(0)}", 1.0)] if weight and rest else []
        shown.append((piece, 0.0))
    return shown[:-1]


def _shown(pieces: Sequence[tuple[str, float]]) -> Iterator[str]:
    """The texts of tokens, with the targets marked: by colour on a terminal, else by brackets."""
    coloured = sys.stdout.isatty()
    for is_target, group in itertools.groupby(pieces, key=lambda piece: bool(piece[1])):
        text = "".join(piece for piece, _ in group)
        if coloured:
            yield typer.style(text, **({"fg": "green", "underline": True} if is_target else {"dim": True}))
        else:
            yield f"⟦{text}⟧" if is_target else text
