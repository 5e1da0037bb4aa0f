"""How arms write free text, compared with the reference answers."""

from __future__ import annotations

from pydantic import Field

from tunewright.core.records.common import Interval, Value


class ReferenceContrast(Value):
    """How much likelier the tuned arm finds the reference answers than another arm does, in bits per byte."""

    difference: float = Field(description="This arm's bits per byte minus the tuned arm's; positive is better.")
    interval: Interval = Field(description="Its interval.")


class AucValue(Value):
    """How well a classifier distinguishes the arm's answers from the reference answers. It is cross-fitted on the test
    rows: each is scored by one that was not fitted to it."""

    value: float = Field(description="Area under the ROC curve: 0.5 if it cannot, 1 if it always can.")
    interval: Interval = Field(description="Its interval.")


class TraitValue(Value):
    """A trait of the texts: its mean in the reference answers and in the arm's."""

    name: str = Field(description="The trait.")
    reference: float = Field(description="Mean over the reference answers.")
    arm: float = Field(description="Mean over the arm's answers.")
    auc: float = Field(description="AUC of this trait alone, 0.5 to 1.")


class ArmVoice(Value):
    """How an arm writes, compared with the reference answers of the same rows."""

    reference_bits: float | None = Field(
        description="Bits per byte of the reference answers after this arm's prompts; null if the model does not tell."
    )
    extra_bits: ReferenceContrast | None = Field(
        None, description="Comparison with the tuned arm; absent for the tuned arm itself."
    )
    auc: AucValue | None = Field(description="Null for fewer than 20 rows.")
    traits: tuple[TraitValue, ...] = Field(
        description="The traits that are shown to give the arm away, the strongest first, openings last."
    )
    copied: int = Field(
        description="Answers with 13 consecutive words of a training answer that the reference answer does not have."
    )
    loops: int = Field(description="Answers in which a run of 8 words occurs three times or more.")
    cut: int = Field(description="Answers that reached the token limit.")


class TopicContrast(Value):
    """How much likelier the tuned model finds the reference answers after their own question than after that of another
    test row, in bits per byte."""

    rows: int = Field(description="Test rows whose prompt differs from another's.")
    difference: float = Field(description="Bits per byte after other questions minus those after their own.")
    interval: Interval = Field(description="Its interval, at 99.8%.")

    @property
    def depends_on_question(self) -> bool:
        """Whether they are shown to be likelier after their own question."""
        return self.interval.low > 0


class Voice(Value):
    """How the arms write; free text only."""

    rows: int = Field(description="Test rows.")
    encoder: str | None = Field(
        None, description="Folder name of the encoder that the classifier of the AUC also reads; absent if none."
    )
    arms: dict[str, ArmVoice] = Field(description="Every arm that writes answers, by family.")
