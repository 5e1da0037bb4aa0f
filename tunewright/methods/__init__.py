"""Training methods: a module each, found by the name that `Plan.method` holds. See `method.Method` for their
functions."""

from tunewright.methods import distill, sft
from tunewright.methods.method import Method

METHODS: dict[str, Method] = {"sft": sft, "distill": distill}
