"""The arms of a run. Arms of one family that differ only in their prompt are its variants; dev chooses the one that
answers test. No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunewright.core.config import ProveConfig
from tunewright.core.errors import ConfigError
from tunewright.data import baselines
from tunewright.data.baselines import Predict
from tunewright.data.endpoints.openai_endpoint import Endpoint
from tunewright.data.messages import Chat, Text
from tunewright.data.task import ENTITIES, RANKING, REWARDS, TAGS, Task, label_set
from tunewright.data.text import content_hash
from tunewright.judge.arms import bm25, classifier, ranking, voting
from tunewright.judge.arms.arm import Arm, Responder
from tunewright.judge.arms.best_of import BestOf
from tunewright.judge.arms.bm25 import Index
from tunewright.judge.arms.headed import Headed
from tunewright.judge.arms.label_scored import LabelScored
from tunewright.judge.arms.prompted import Prompted
from tunewright.judge.arms.prompts import OWN_PROMPT, PASSAGES, Recipe
from tunewright.judge.arms.reader import Reader
from tunewright.judge.arms.remote import Remote
from tunewright.judge.search import arms as searching

SAMPLES = 4  # of the arm that chooses among samples by their reward
LONG_PROMPT = 200  # characters from which an instruction is worth leaving out
Families = dict[str, list[Arm]]


@dataclass(frozen=True)
class ArmInputs:
    """What arms may use: the training rows, the user's documents, and a function that indexes texts.
    ``full_precision``: whether the base that is not quantised answers, too; ``started``: whether the adapter does that
    training continued from; ``head``: whether the tuned model answers with its head; ``unprompted``: why no arm
    prompts the base, as a sentence about the tuned one; "" if arms do; ``taught``: whether it learns from a teacher."""

    train: tuple[Chat, ...]
    documents: tuple[Text, ...] = ()
    indexer: Callable[[Sequence[str]], Index] = bm25.index
    full_precision: bool = False
    started: bool = False
    head: bool = False
    unprompted: str = ""
    taught: bool = False


def arms(task: Task, sources: ArmInputs, config: ProveConfig, max_new_tokens: int) -> Families:
    """Families in the order of the report, the tuned arm last. Documents have no prompt, so they have only two arms.
    ``max_new_tokens`` limits an endpoint's answers."""
    if task.kind is RANKING:
        ways = ranking.arms(sources.train, config.evidence != "plain")
        own = {"tuned": ways.pop("tuned")}
        return {**ways, **_full_precision(ways, sources), **own}
    if task.corpus is not None:
        return searching.families(task.corpus, sources.started, full=config.evidence != "plain")
    if not task.kind.prompted:
        base = {"base": [Arm("base", "the base model", language_model(task))]}
        return {**base, **_full_precision(base, sources), **_started(task, sources), "tuned": [tuned(task)]}
    train, full = sources.train, config.evidence != "plain"
    # Examples in a prompt are single turns with an answer; longer conversations, and prompts alone, are none.
    shots = config.few_shot if any(map(bm25.single_turn, train)) and task.kind is not REWARDS else []
    if sources.unprompted:
        return _unprompted(task, sources, config, max_new_tokens)
    shared = _shared_instruction(train)
    families = {
        "zero_shot": _zero_shot(task, train, shared, config),
        "few_shot": [few_shot(task, train, count) for count in shots],
        "nearest": _nearest(task, sources, shots) if full and shots else [],
        "best_of": _best_of(task) if full else [],
        **_retrieval(task, sources),
        **_classifiers(task, train, full),
    }
    families |= _full_precision(families, sources) | _remote(task, config, max_new_tokens)
    if full and shared and len(shared) >= LONG_PROMPT:
        description = "the trained weights without the long instruction"
        families["tuned_short"] = [tuned(task, Recipe(instruction=""), "tuned_short", description)]
    if full and (sources.head or sources.taught):
        description = "fine-tuning to write the answer, on the same rows and for as many steps"
        written = language_model(task)
        families["sft"] = [Arm("sft", description, written, uses_adapter=True, trained=True, branch="sft")]
    if full and sources.taught:
        asked = Arm("teacher", "the teacher, prompted as in training", language_model(task), trained=True, teacher=True)
        families["teacher"] = [asked]
    families |= _started(task, sources)
    families = {**{family: variants for family, variants in families.items() if variants}, "tuned": [tuned(task)]}
    return _with_head(families) if sources.head else families


def _unprompted(task: Task, sources: ArmInputs, config: ProveConfig, max_new_tokens: int) -> Families:
    """What can be compared with a model that does not write: baselines, votes of similar rows, and an endpoint."""
    full = config.evidence != "plain"
    own = {"tuned": [tuned(task, description=f"the trained weights; {sources.unprompted}")]}
    if task.kind in (ENTITIES, TAGS):
        return _with_head({**voting.of_words(sources.train, full), **own})
    families = {
        "nearest": voting.nearest(task, sources.train, config.few_shot, sources.indexer) if full else [],
        **_classifiers(task, sources.train, full),
        **_remote(task, config, max_new_tokens),
    }
    kept = {family: variants for family, variants in families.items() if variants}
    return _with_head({**kept, **own})


def _remote(task: Task, config: ProveConfig, max_new_tokens: int) -> Families:
    if not config.remote.url:
        return {}
    if task.metric.name == "reference_bits":
        message = "prove.metric=reference_bits needs the likelihood of given answers, which an endpoint does not tell."
        fix = "leave prove.remote out, or choose another metric."
        raise ConfigError("CONFIG_CONFLICT", message, where="prove.remote.url", fix=fix)
    description = f"{config.remote.model} at {config.remote.url}"
    return {"remote": [Arm("remote", description, Remote(Endpoint.of(config.remote), max_new_tokens, task.labels))]}


def language_model(task: Task, recipe: Recipe = OWN_PROMPT) -> Responder:
    """How the run's language model, base or tuned, answers this task."""
    if not task.kind.prompted:
        return Reader()
    if task.metric.by_label:
        return LabelScored(task.labels, recipe)
    return Prompted(recipe, references="reference_bits" in task.kind.summary)


def tuned(
    task: Task,
    recipe: Recipe = OWN_PROMPT,
    family: str = "tuned",
    description: str = "the trained weights, prompted as in training",
) -> Arm:
    return Arm(family, description, language_model(task, recipe), uses_adapter=True, trained=True)


def _started(task: Task, sources: ArmInputs) -> Families:
    """The adapter as it was. It may have been trained on any rows, so the verdict does not compare with it."""
    arm = tuned(task, family="start", description="the adapter that training continued from, prompted as in training")
    return {"start": [replace(arm, from_start=True)]} if sources.started else {}


def _with_head(families: Families) -> Families:
    """The families, in which the trained weights answer with their head."""

    def headed(arm: Arm) -> Arm:
        if arm.branch or not (arm.uses_adapter and isinstance(arm.responder, LabelScored | Prompted)):
            return arm
        description = arm.description.replace("the trained weights", "the trained weights and head", 1)
        return replace(arm, responder=Headed(arm.responder.recipe), description=description)

    return {family: list(map(headed, variants)) for family, variants in families.items()}


def _zero_shot(task: Task, train: Sequence[Chat], shared: str | None, config: ProveConfig) -> list[Arm]:
    texts = [] if config.evidence == "plain" else [*instructions(task, train, shared), *config.prompts]
    own = Arm("zero_shot", "the base model with the rows' own instruction", language_model(task))
    return [
        own,
        *(
            Arm(
                "zero_shot",
                f"the base model, with the instruction: {text}",
                language_model(task, Recipe(text)),
                f"wording{n}",
            )
            for n, text in enumerate(texts, 2)
        ),
    ]


def few_shot(task: Task, train: Sequence[Chat], count: int) -> Arm:
    shots = choose_shots(task, train, count)
    description = f"the base model, with {len(shots)} training rows as examples"
    return Arm("few_shot", description, language_model(task, Recipe(shots=shots)), f"k{count}")


def _nearest(task: Task, sources: ArmInputs, shots: Sequence[int]) -> list[Arm]:
    description = "the base model, with the {} most similar training rows as examples"
    near = bm25.nearest(sources.train, max(shots), sources.indexer)
    return [
        Arm("nearest", description.format(k), language_model(task, Recipe(shots=replace(near, count=k))), f"k{k}")
        for k in shots
    ]


def _best_of(task: Task) -> list[Arm]:
    if task.grader is None:
        return []
    description = (
        f"the base model, the best of {SAMPLES} samples by the reward, which needs the grader at every request"
    )
    return [Arm("best_of", description, BestOf(task.grader, SAMPLES))]


def _retrieval(task: Task, sources: ArmInputs) -> Families:
    if not sources.documents:
        return {}
    recipe = Recipe(documents=sources.indexer(bm25.passages(sources.documents)))
    description = f"the base model, given {PASSAGES} passages from your documents"
    return {
        "retrieval": [Arm("retrieval", description, language_model(task, recipe))],
        "tuned_retrieval": [tuned(task, recipe, "tuned_retrieval", "the trained weights, given the same passages")],
    }


def _full_precision(families: Families, sources: ArmInputs) -> Families:
    """Every prompt, asked of the base that is not quantised: what users could do instead, if it fits their machine."""
    if not sources.full_precision:
        return {}
    asked = [arm for variants in families.values() for arm in variants if arm.needs_model and not arm.trained]
    return {
        "full_precision": [
            replace(
                arm,
                family="full_precision",
                variant="-".join(filter(None, (arm.family, arm.variant))),
                description=arm.description.replace("the base model", "the base model, not quantised", 1),
                full_precision=True,
            )
            for arm in asked
        ]
    }


def _classifiers(task: Task, train: Sequence[Chat], full: bool) -> Families:
    if task.numbers is not None:
        titles = ("always the median of the training answers", "TF-IDF and ridge regression")
        return _predictors(titles, baselines.median(train), baselines.ridge(train), full)
    if task.label_set:
        titles = ("always the most frequent set of labels", "TF-IDF and logistic regression, for each label")
        each = baselines.each_label(train, task.label_set, label_set.parts, label_set.joined)
        return _predictors(titles, baselines.most_frequent(train), each, full)
    if not task.labels:
        return {}
    constant = classifier.most_probable(baselines.constant(train, task.labels), task.labels)
    families = {"constant": [Arm("constant", "always the most frequent label", constant)]}
    if full:
        tfidf = classifier.most_probable(baselines.tfidf(train, task.labels), task.labels)
        families["classical"] = [Arm("classical", "TF-IDF and logistic regression", tfidf, trained=True)]
    return families


def _predictors(titles: tuple[str, str], constant: Predict, classical: Predict, full: bool) -> Families:
    families = {"constant": [Arm("constant", titles[0], classifier.texts(constant))]}
    if full:
        families["classical"] = [Arm("classical", titles[1], classifier.texts(classical), trained=True)]
    return families


def choose_shots(task: Task, train: Sequence[Chat], count: int) -> tuple[Chat, ...]:
    """Training rows in the order of their content hash, so nobody picks them; for labels, one of each label in turn."""
    ordered = sorted((e for e in train if len(e.messages) <= 3), key=lambda e: content_hash(e.question))
    if not task.labels:
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


def _shared_instruction(train: Sequence[Chat]) -> str | None:
    """The system message of all training rows, if they share one."""
    heads = {e.messages[0].content if e.messages[0].role == "system" else None for e in train}
    return heads.pop() if len(heads) == 1 else None


def instructions(task: Task, train: Sequence[Chat], shared: str | None) -> list[str]:
    """Two more instructions that someone who knows the task but not the rows would try: the form of the answer, alone
    and after the user's own instruction."""
    form = task.kind.instruct(task, train)
    return [form, f"{shared}\n{form}" if shared else f"You are an expert who has answered thousands of these. {form}"]
