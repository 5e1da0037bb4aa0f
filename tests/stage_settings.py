"""Settings of single stages, and the effect of a value other than the default. The run is the fixture `full`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Reader = Callable[[str], Any]  # the content of a JSON file of the run, by name
LATE: dict[str, Callable[[Reader], bool]] = {
    "experiments.prompt_distillation": lambda read: read("prompt_distillation")["prompts"] == 10,
    "experiments.crossfit": lambda read: read("crossfit")["measured"],
    "experiments.cleaning": lambda read: read("cleaning")["measured"],
    "forget.regression_rows": lambda read: read("forgetting")["regression_rows"]["items"] == 3,
    "forget.scales": lambda read: read("forgetting")["scales"] == [0.5, 1.0],
    "experiments.mitigation": lambda read: read("mitigation")["measured"],
    "cost.requests": lambda read: read("cost")["requests"] == 4,
    "cost.batch_size": lambda read: read("cost")["batch_size"] == 2,
    "cost.price_per_hour": lambda read: read("cost")["money"]["training_and_judging"] > 0,
}
