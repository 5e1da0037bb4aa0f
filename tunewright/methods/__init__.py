"""Training methods, one module each, by the name in `Plan.method`. `method.Method` defines their functions."""

from tunewright.methods import distill, sft
from tunewright.methods.method import Method

METHODS: dict[str, Method] = {"sft": sft, "distill": distill}
