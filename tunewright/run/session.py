"""One run in one process: what its stages share, each made when it is first asked for."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunewright.core import run_folder
from tunewright.core.config import Config, Plan
from tunewright.core.console import Console
from tunewright.core.run_folder import Run
from tunewright.data import dataset, examples, sources
from tunewright.data.dataset import Dataset
from tunewright.data.examples import Chat, Text
from tunewright.judge import evaluate, protocol
from tunewright.judge.arms import bm25, embedding_index, families
from tunewright.judge.arms.families import Arm
from tunewright.judge.evaluate import Score
from tunewright.judge.protocol import Protocol
from tunewright.methods import METHODS
from tunewright.model import adapters, fused_llama, loading
from tunewright.model.facts import Facts, read_facts
from tunewright.model.generate import Decoding, stop_ids
from tunewright.model.language_model import LanguageModel
from tunewright.tokens import render_cache, rendering
from tunewright.tokens.render_cache import RowRenderer
from tunewright.tokens.sequences import TrainRow, check_ids, flat
from tunewright.tokens.template import Template, load_template
from tunewright.train import checkpoints, machine, planning


@dataclass
class Session:
    """See the module: files are read, models loaded and arms made on first use, and kept."""

    run: Run
    config: Config
    talk: Console
    command: str
    model: LanguageModel | None = None
    base: LanguageModel | None = None
    speaks: bool = False

    @functools.cached_property
    def data(self) -> Dataset:
        return dataset.load(self.config)

    @functools.cached_property
    def facts(self) -> Facts:
        once = (
            " (a GGUF is converted once, some 20 s)"
            if self.config.model == loading.EMBEDDED or self.config.model.endswith(".gguf")
            else ""
        )
        self.talk.say(f"model {self.config.model}: reading its facts, probing its layout{once}")
        return read_facts(self.config.model)

    @functools.cached_property
    def machine(self) -> machine.Machine:
        machine.keep_pages()
        return machine.measure(None if self.config.threads == "auto" else self.config.threads)

    @functools.cached_property
    def template(self) -> Template:
        return load_template(Path(self.facts.path), self.config.template, self.config.date)

    @functools.cached_property
    def rendered(self) -> dict[str, list[TrainRow]]:
        """Training rows of every side; test is rendered too, so that a row that cannot be judged is known before training."""
        limit, _ = planning.max_length(self.config, self.facts, self.machine, self.data.task.kind)
        prepare = METHODS[self.config.train.method].prepare
        how = RowRenderer(self.template, prepare, limit, self.config.data.too_long)
        found, dropped = {}, []
        for side in ("train", "dev", "test"):
            made = render_cache.cached_rows(how, self.data.examples, self.data.side(side), self.run.path / "data")
            found[side] = made.rows
            dropped += made.dropped
            check_ids(made.rows, self.facts.vocabulary, self.facts.path)
        if dropped:
            self.talk.warn(
                f"{len(dropped)} rows are over {limit} tokens and left out, as data.too_long=drop asks: {', '.join(self.data.examples[i].where for i in dropped[:5])}"
            )
            self.run.event("rows_left_out", rows=dropped, limit=limit)
        return found

    @functools.cached_property
    def plan(self) -> Plan:
        return Plan.model_validate(run_folder.read_json(self.run.plan))

    @property
    def hashes(self) -> dict[str, str]:
        """What the weights of a run depend on: checked at every stage and in every checkpoint."""
        fixed = self.plan.model_dump_json(exclude={"estimate", "reasons"})
        return {
            "data": self.data.sha256,
            "model": self.facts.sha256,
            "template": self.template.sha256,
            "plan": hashlib.sha256(fixed.encode()).hexdigest(),
        }

    def rows(self, side: str) -> list[int]:
        """The rows of dev that choose, or of test that claim."""
        asked = self.config.prove
        return self.data.judged(
            asked.max_test_rows if side == "test" else min(asked.max_dev_rows, asked.max_test_rows or asked.max_dev_rows), side
        )

    @functools.cached_property
    def families(self) -> dict[str, list[Arm]]:
        """The arms. A variant whose prompts do not fit into the model's context is left out, and said."""
        train = [e for i in self.data.side("train") if isinstance(e := self.data.examples[i], Chat)]
        documents: list[Text] = []
        if self.config.prove.documents:
            found = examples.parse(sources.read(self.config.prove.documents).rows, "text").examples
            documents = [e for e in found if isinstance(e, Text)]
        indexer = embedding_index.indexer(self.config.prove.embedder) if self.config.prove.embedder else bm25.index
        made = families.arms(self.data.task, train, self.config.prove, documents, indexer)
        asked = [e for i in self.rows("dev") + self.rows("test") if isinstance(e := self.data.examples[i], Chat)]
        room = self.facts.context - self.answer_tokens
        kept: dict[str, list[Arm]] = {}
        for family, variants in made.items():
            kept[family] = [s for s in variants if s.says or s.endpoint or self._longest(s, asked) <= room]
            for system in variants:
                if system not in kept[family]:
                    self.talk.warn(f"  {system.name} is left out: its prompts do not fit into {self.facts.context} tokens")
        return {family: variants for family, variants in kept.items() if variants}

    def _longest(self, system: Arm, asked: list[Chat]) -> int:
        return max((len(rendering.for_generation(self.template, families.prompt(system, e))) for e in asked), default=0)

    @functools.cached_property
    def answer_tokens(self) -> int:
        """Longest answer of every arm: a quarter longer than the longest training answer. Raw text is not answered."""
        asked = self.config.prove.max_new_tokens
        longest = max(s.supervised for s in flat(self.rendered["train"]))
        return asked if asked != "auto" else min(512, longest + longest // 4 + 8)

    @functools.cached_property
    def how(self) -> Decoding:
        """The one way in which all arms answer: greedy."""
        facts, limit = self.facts, self.answer_tokens
        batch = planning.judged_together(self.config, facts, self.plan, self.machine, limit)
        return Decoding(limit, stop_ids(self.loaded(), self.template.eos), batch, facts.packable, facts.window)

    @functools.cached_property
    def protocol(self) -> Protocol:
        return protocol.make(self.data, self.config.prove, self.families, self.rows("dev"), self.rows("test"), self.answer_tokens)

    def trained(self) -> LanguageModel:
        """The model with the weights that training kept."""
        if not self.speaks:
            checkpoints.load_trained(self.run, self.loaded().module)
            self.speaks = True
        return self.loaded()

    def loaded(self) -> LanguageModel:
        """The model in the plan's dtype with a fresh adapter, on the machine's device."""
        if self.model is None:
            self.model = self.fresh(self.plan)
        return self.model

    def fresh(self, plan: Plan) -> LanguageModel:
        """Another copy of the base with an untrained adapter, as ``plan`` asks."""
        model = loading.load(self.facts.path, loading.torch_dtype(plan.dtype))
        adapters.attach(model.module, plan.adapter, plan.seed)
        model.module.to(self.machine.device)
        fused = plan.kernels == "fused" and fused_llama.applies(model.module)
        if plan.gradient_checkpointing == "layers" and not fused:
            model.module.gradient_checkpointing_enable({"use_reentrant": False})
        return dataclasses.replace(model, kernels="fused" if fused else "transformers")

    def base_model(self) -> LanguageModel:
        """What is the base once adapters are off: the model itself, or a second copy where all weights were trained."""
        return self.untrained() if self.plan.adapter.kind == "none" else self.loaded()

    def untrained(self) -> LanguageModel:
        """A second copy of the base model, for the arms beside a model all of whose weights were trained."""
        if self.base is None:
            self.base = loading.load(self.facts.path, loading.torch_dtype(self.plan.dtype))
            self.base.module.to(self.machine.device)
        return self.base

    def _key(self, system: Arm, branch: str) -> str:
        """What an answer depends on besides its row and its prompt."""
        run = self.run.branch(branch) if branch else self.run
        weights = run_folder.read_json(run.training)["weights_sha256"] if system.adapter and run.training.exists() else ""
        facts = [weights, self.run.scale, self.facts.sha256, self.template.sha256, self.answer_tokens, self.data.task.metric]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def judged(
        self,
        file: Path,
        side: str,
        system: Arm,
        rows: list[int] | None = None,
        model: Callable[[], LanguageModel] | None = None,
        of: str = "",
    ) -> list[Score]:
        """Answers to a side (or to some of its ``rows``) as ``system`` asks, a line a row in ``file``; read back where an earlier
        process wrote them, of the same weights. ``model`` and ``of``: a branch's, instead of the run's own."""
        rows = self.rows(side) if rows is None else rows
        if file.exists():
            lines, key = list(run_folder.read_lines(file)), self._key(system, of)
            if [(line["row"], line.get("key")) for line in lines] == [(i, key) for i in rows]:
                return lines
        speaker = (model or (self.trained if system.adapter else self.base_model))()
        chosen, key = [self.data.examples[i] for i in rows], self._key(system, of)  # a branch has its weights only now
        if side == "test" and of:
            self.run.event("test_read", rows=len(rows), branch=of)
        begun = time.monotonic()
        with self.talk.bar(f"{side} {of or system.name}".replace("_", " "), len(chosen)) as note:
            told = functools.partial(note, words="rows")
            scores = evaluate.judge(speaker, system, chosen, self.data.task, self.template, self.how, self.plan, told)
        lines = [{"row": i, **s, "key": key} for i, s in zip(rows, scores, strict=True)]
        run_folder.write_lines(file, lines)
        spent = round(time.monotonic() - begun, 1)
        self.run.event("judged", arm=system.name, side=side, branch=of, rows=len(rows), seconds=spent)
        return lines
