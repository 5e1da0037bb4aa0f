"""The arms: ways to answer a row. A System is a value; what it needs is in it.

Untrained arms that differ only in wording or in the number of shots are variants of one family: dev chooses the variant that
test judges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunewright.core.config import ProveConfig
from tunewright.data import baselines
from tunewright.data.baselines import Classifier
from tunewright.data.examples import Chat, Message, Text, content_hash, question
from tunewright.data.metrics import Task, strict_object
from tunewright.judge.arms import bm25
from tunewright.judge.arms.bm25 import Index, Nearest
from tunewright.judge.arms.openai_endpoint import Endpoint

PASSAGES = 3
LONG_PROMPT = 200


@dataclass(frozen=True)
class Arm:
    """``family`` is what the report calls it, ``variant`` what dev chose. ``adapter``: the trained weights speak.
    ``instruction``: a system message instead of the row's own ("" for none). ``shots``: training rows shown first, or where to
    look for them, and how many. ``says`` answers without a language model, ``endpoint`` by another one."""

    family: str
    description: str
    variant: str = ""
    adapter: bool = False
    instruction: str | None = None
    shots: tuple[Chat, ...] | Nearest = ()
    count: int = 0
    documents: Index | None = None
    says: Classifier | None = None
    fitted: bool = False
    endpoint: Endpoint | None = None

    @property
    def trained(self) -> bool:
        """Whether it learned from the training rows: then it cannot be the comparator."""
        return self.adapter or self.fitted

    @property
    def name(self) -> str:
        return f"{self.family}-{self.variant}" if self.variant else self.family


def prompt(system: Arm, example: Chat) -> tuple[Message, ...]:
    """What the arm says to the model: system message, the shots as earlier turns, the row's question with what was found for it."""
    own = example.prompt
    head, rest = (own[:1], own[1:]) if own and own[0].role == "system" else ((), own)
    if system.instruction is not None:
        head = (Message("system", system.instruction),) if system.instruction else ()
    shots = system.shots.shots(example, system.count) if isinstance(system.shots, Nearest) else system.shots
    shown = tuple(m for shot in shots for m in shot.messages if m.role != "system")
    if system.documents is not None:
        found = system.documents.best(question(example), PASSAGES)
        context = "\n\n".join(f"[{n}] {system.documents.texts[i]}" for n, i in enumerate(found, 1))
        rest = (*rest[:-1], Message(rest[-1].role, f"Use what is of use here:\n\n{context}\n\n{rest[-1].content}"))
    return (*head, *shown, *rest)


def arms(
    task: Task,
    train: Sequence[Chat],
    asked: ProveConfig,
    documents: Sequence[Text] = (),
    indexer: Callable[[Sequence[str]], Index] = bm25.index,
) -> dict[str, list[Arm]]:
    """Families of arms, the tuned ones last; several systems of a family are variants. Raw text has no prompt: two arms."""
    tuned = Arm("tuned", "the trained weights, prompted as in training", adapter=True)
    if task.kind == "text":
        return {"base": [Arm("base", "the base model")], "tuned": [tuned]}
    shared = _instruction(train)
    plain = asked.evidence == "plain"
    texts = [] if plain else [*wordings(task, train, shared), *asked.prompts]
    found = {
        "zero_shot": [
            Arm("zero_shot", "the base model with the rows' own instruction"),
            *(Arm("zero_shot", f"the base model, told: {t}", f"wording{n}", instruction=t) for n, t in enumerate(texts, 2)),
        ],
        "few_shot": [few_shot(task, train, count) for count in asked.few_shot],
    }
    if not plain and asked.few_shot:
        near = bm25.nearest(train, indexer)
        told = "the base model, shown the {} most similar training rows"
        found["nearest"] = [Arm("nearest", told.format(k), f"k{k}", shots=near, count=k) for k in asked.few_shot]
    if documents:
        passages = indexer(bm25.passages(documents))
        found["retrieval"] = [
            Arm("retrieval", f"the base model, given {PASSAGES} passages of your documents", documents=passages)
        ]
        found["tuned_retrieval"] = [
            replace(
                tuned, family="tuned_retrieval", description="the trained weights, given the same passages", documents=passages
            )
        ]
    if task.kind == "label":
        found["constant"] = [Arm("constant", "always the commonest label", says=baselines.constant(train, task.labels))]
    if task.kind == "label" and not plain:
        found["classical"] = [
            Arm("classical", "TF-IDF and logistic regression", says=baselines.tfidf(train, task.labels), fitted=True)
        ]
    if asked.remote.url:
        found["remote"] = [Arm("remote", f"{asked.remote.model} at {asked.remote.url}", endpoint=Endpoint.of(asked.remote))]
    if not plain and shared and len(shared) >= LONG_PROMPT:
        found["tuned_short"] = [
            replace(tuned, family="tuned_short", description="the trained weights without the long instruction", instruction="")
        ]
    return {**{k: v for k, v in found.items() if v}, "tuned": [tuned]}


def few_shot(task: Task, train: Sequence[Chat], count: int) -> Arm:
    chosen = choose_shots(task, train, count)
    return Arm(
        "few_shot", f"the base model, shown {len(chosen)} training rows first", f"k{count}", shots=chosen, count=len(chosen)
    )


def choose_shots(task: Task, train: Sequence[Chat], count: int) -> tuple[Chat, ...]:
    """Training rows in the order of their content hash (no choice is made by looking at them); for labels, one of each in turn."""
    ordered = sorted((e for e in train if len(e.messages) <= 3), key=lambda e: content_hash(question(e)))
    if task.kind != "label":
        return tuple(ordered[:count])
    of_label: dict[str, list[Chat]] = defaultdict(list)
    for example in ordered:
        of_label[example.target].append(example)
    chosen: list[Chat] = []
    for turn in range(count):
        for label in sorted(of_label):
            if turn < len(of_label[label]) and len(chosen) < max(count, len(of_label)):
                chosen.append(of_label[label][turn])
    return tuple(chosen)


def _instruction(train: Sequence[Chat]) -> str | None:
    """The system message of all training rows, if they share one."""
    heads = {e.messages[0].content if e.messages[0].role == "system" else None for e in train}
    return heads.pop() if len(heads) == 1 else None


def wordings(task: Task, train: Sequence[Chat], shared: str | None) -> list[str]:
    """Two more instructions that someone who knows the task but not the rows would try: what form the answer has, alone and
    after the user's own words."""
    if task.kind == "label":
        form = f"Answer with exactly one of these labels and nothing else: {', '.join(task.labels)}."
    elif task.kind == "json":
        keys: dict[str, int] = defaultdict(int)
        for example in train:
            for key in strict_object(example.target) or {}:
                keys[key] += 1
        common = sorted(keys, key=lambda k: (-keys[k], k))[:40]
        form = (
            f"Answer with one JSON object and nothing else. Use only these keys, and only those that apply: {', '.join(common)}."
        )
    else:
        lengths = sorted(len(e.target.split()) for e in train)
        form = f"Answer directly and exactly, in about {lengths[len(lengths) // 2]} words, without any preamble."
    return [form, f"{shared}\n{form}" if shared else f"You are an expert who has answered thousands of these. {form}"]
