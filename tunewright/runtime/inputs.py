"""What a run computes from its config and files before it loads weights: functions without output or state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewright.core import records
from tunewright.core.config import DISTILLED, EMBEDDING, HEADS, RANKERS, REWARDED, Config
from tunewright.core.config.method_settings import check_model
from tunewright.core.errors import data_error
from tunewright.core.records import ProtocolRecord, Receipt, Side
from tunewright.core.run_folder import Run
from tunewright.data.dataset import Dataset
from tunewright.data.formats import RowSettings
from tunewright.data.messages import Chat, Example, Text
from tunewright.data.remedies import prepared
from tunewright.data.remedies.change import Change
from tunewright.data.remedies.prepared import SIDES
from tunewright.judge.arms import bm25, families
from tunewright.judge.arms.arm import Arm
from tunewright.judge.arms.families import ArmInputs, Families
from tunewright.judge.search import embedding_index
from tunewright.methods import METHODS, kto
from tunewright.model import loading
from tunewright.model.facts import Facts, read_facts
from tunewright.system import heap, machine
from tunewright.system.machine import Machine
from tunewright.tokens import encoder_text, render_cache, rendering, texts
from tunewright.tokens.render_cache import RowRenderer
from tunewright.tokens.sequences import TrainRow, check_ids
from tunewright.tokens.template import Template, for_method, for_rows, has_thoughts, hashed_as, load_template
from tunewright.train import planning


@dataclass(frozen=True)
class Inputs:
    """``rows``: training rows by side; test is rendered too, so that a row that cannot be evaluated is reported before
    training. ``too_long``: rows dropped for exceeding ``limit`` tokens. ``arms``: by family; ``left_out``: names of
    those whose prompts do not fit the model's context. ``document_changes``: in prove.documents, and
    ``documents_sha256`` of those that are left. ``dev``: rows for choosing; ``test``: rows for the verdict."""

    facts: Facts
    machine: Machine
    template: Template
    rows: Mapping[Side, tuple[TrainRow, ...]]
    limit: int
    too_long: tuple[int, ...]
    arms: Families
    left_out: tuple[str, ...]
    document_changes: tuple[Change, ...]
    documents_sha256: str
    max_new_tokens: int
    dev: tuple[int, ...]
    test: tuple[int, ...]

    def short_enough(self, rows: Iterable[int]) -> list[int]:
        """Those of the rows that are not dropped as too long, in order."""
        return sorted({*rows} - {*self.too_long})

    @property
    def tuned(self) -> Arm:
        """The arm with the trained weights, prompted as in training."""
        (arm,) = self.arms["tuned"]
        return arm

    @property
    def test_rows(self) -> list[TrainRow]:
        """The training rows made of the rows for the verdict."""
        wanted = set(self.test)
        return [r for r in self.rows["test"] if r.row in wanted]

    def evaluated(self, side: Side) -> tuple[int, ...]:
        """The rows of dev or test that arms answer."""
        return self.dev if side == "dev" else self.test


def gather(config: Config, run: Run, data: Dataset) -> Inputs:
    """Reads the model's facts, renders all rows (using the run's cache) and creates the arms.

    Raises ModelError, or DataError with every row that the template or the model cannot process.
    """
    heap.keep()
    hardware = machine.measure(None if config.threads == "auto" else config.threads)
    return on_machine(config, run, data, read_facts(config.model, config.quantise, config.adapter), hardware)


def on_machine(config: Config, run: Run, data: Dataset, facts: Facts, hardware: Machine) -> Inputs:
    """Like `gather`, with given facts about the model and the machine."""
    check_model(config, facts.encoder)
    if facts.encoder:
        encoder_text.require_one_instruction(data.examples)
    template = read_template(config, Path(facts.path), data.examples)
    if run.receipt.exists():
        template = hashed_as(template, records.read(run.receipt, Receipt).hashes["template"])
    limit = planning.max_length(config, facts, hardware, data.task.kind.name).value
    # What is written to a prompt of rewards follows it.
    most = limit - answer_limit(config, ()) if config.train.method in REWARDED else limit
    prepare = METHODS[config.train.method].prepare
    renderer = RowRenderer(template, prepare, most, config.data.too_long, unread=int(template.encoder))
    rendered = {s: render_cache.cached_rows(renderer, data.examples, data.every(s), run.path / "data") for s in SIDES}
    for result in rendered.values():
        check_ids(result.rows, facts.vocabulary, facts.path)
    train = rendered["train"].rows
    labelled = config.train.method in HEADS and config.train.method not in RANKERS
    max_new_tokens = answer_limit(config, train, _longest_label(template, data) if labelled else 0)
    too_long = tuple(i for result in rendered.values() for i in result.dropped)
    dev, test = (tuple(i for i in evaluated_rows(config, data, s) if i not in too_long) for s in ("dev", "test"))
    chats = [e for i in (*dev, *test) if isinstance(e := data.examples[i], Chat)]
    room = facts.context - (0 if facts.encoder else max_new_tokens)

    def fits(arm: Arm) -> bool:
        if data.task.corpus is not None:  # its texts are not prompts, and longer ones are cut
            return True
        return all(len(rendering.for_generation(template, arm.prompt(e))) <= room for e in chats)

    documents, changes = _documents(config)
    sources = ArmInputs(
        tuple(e for i in data.side("train") if isinstance(e := data.examples[i], Chat)),
        documents,
        embedding_index.indexer(config.prove.embedder) if config.prove.embedder else bm25.index,
        _asks_full_precision(run, facts, hardware),
        config.adapter.start is not None,
        config.train.method in HEADS,
        unprompted=_unprompted(facts) if template.encoder else "",
        taught=config.train.method in DISTILLED,
    )
    arms, left_out = _arms(config, data, sources, fits, max_new_tokens)
    if "tuned" not in arms:
        longest = max(chats, key=lambda e: len(rendering.for_generation(template, e.prompt)))
        raise data_error(
            "DATA_TOO_LONG",
            f"this row's prompt and an answer of {max_new_tokens} tokens do not fit the model's context of "
            f"{facts.context} tokens.",
            where=longest.where,
            fix="set a smaller prove.max_new_tokens, or leave the row out of dev and test.",
        )
    return Inputs(
        facts=facts,
        machine=hardware,
        template=template,
        rows={side: tuple(result.rows) for side, result in rendered.items()},
        limit=limit,
        too_long=too_long,
        arms=arms,
        left_out=left_out,
        document_changes=changes,
        documents_sha256=hashlib.sha256(json.dumps([d.text for d in documents]).encode()).hexdigest(),
        max_new_tokens=max_new_tokens,
        dev=dev,
        test=test,
    )


def read_template(config: Config, folder: Path, examples: Sequence[Example]) -> Template:
    """The tokenizer and template of a model folder, as the config's method uses it for these rows."""
    loaded = for_method(load_template(folder, config.template, config.date), config.train.method)
    template = for_rows(loaded, has_thoughts(examples))
    if config.train.method in EMBEDDING:
        return texts.with_prefixes(template, config.embed.query_prefix, config.embed.document_prefix)
    return template


def _unprompted(facts: Facts) -> str:
    """Why no arm prompts the base."""
    if facts.encoder:
        return "an encoder, which sees the whole text and does not write, so no arm prompts it"
    return "a decoder, which sees of each word its first token and the text before; it is not asked to write tags"


def loading_message(config: Config) -> str:
    """The message to print while the model's facts are read."""
    converted = config.model == loading.EMBEDDED or config.model.endswith(".gguf")
    once = " (a GGUF is converted once, about 20 s)" if converted else ""
    return f"model {config.model}: reading its config, probing its architecture{once}"


def evaluated_rows(config: Config, data: Dataset, side: Literal["dev", "test"]) -> tuple[int, ...]:
    """The rows of dev or test that arms answer: at most as many as the config allows, chosen only by their content."""
    p = config.prove
    limit = p.max_test_rows if side == "test" else min(p.max_dev_rows, p.max_test_rows or p.max_dev_rows)
    return tuple(data.sample(limit, side))


def answer_limit(config: Config, train: Sequence[TrainRow], label: int = 0) -> int:
    """The longest answer of every arm in tokens: 25% longer than the longest training answer, within a limit.
    ``label``: the longest label, of rows that contain none."""
    if config.prove.max_new_tokens != "auto":
        return config.prove.max_new_tokens
    if config.train.method in EMBEDDING:
        return 1  # nothing is written
    if config.train.method in REWARDED:
        return planning.UNKNOWN_ANSWER
    # The other of two answers was rejected.
    longest = label or max((r.sequences[0].supervised for r in train if kto.is_desirable(r)), default=0)
    return min(planning.LONGEST_ANSWER, longest + longest // 4 + 8)


def _longest_label(template: Template, data: Dataset) -> int:
    """Of the labels or numbers, in tokens."""
    train = [data.examples[i] for i in data.side("train")]
    labels = data.task.labels or [max((e.target for e in train), key=len)]
    if template.encoder:  # an endpoint, whose tokens are others, may be asked, too
        return max(len(encoder_text.plain_ids(template.tokenizer, label)) for label in labels)
    return max(len(rendering.completion_ids(template, train[0].prompt, label)) for label in labels)


def _asks_full_precision(run: Run, facts: Facts, hardware: Machine) -> bool:
    """Whether the base that is not quantised is an arm: as the run's protocol says, on whichever machine it is
    continued."""
    if run.protocol.exists():
        return "full_precision" in records.read(run.protocol, ProtocolRecord).arms
    return planning.full_precision_fits(facts, hardware)


def _documents(config: Config) -> tuple[tuple[Text, ...], tuple[Change, ...]]:
    """The documents for retrieval, and what settings of data dropped or changed in them."""
    if not config.prove.documents:
        return (), ()
    read = prepared.read(config.prove.documents, config, RowSettings("text"))
    return tuple(e for e in read.parsed.examples if isinstance(e, Text)), read.changes


def _arms(
    config: Config, data: Dataset, sources: ArmInputs, fits: Callable[[Arm], bool], max_new_tokens: int
) -> tuple[Families, tuple[str, ...]]:
    """The arms, and the names of those left out because one of their prompts does not fit."""
    every = families.arms(data.task, sources, config.prove, max_new_tokens)
    kept = {family: [a for a in variants if not a.needs_model or fits(a)] for family, variants in every.items()}
    left_out = tuple(a.name for family, variants in every.items() for a in variants if a not in kept[family])
    return {family: variants for family, variants in kept.items() if variants}, left_out
