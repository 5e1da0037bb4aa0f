"""What a run has chosen on dev: how the tuned model's tokens are chosen, and the scale of its update."""

from tunewright.core.run_folder import Run, read_json


def chosen_scale(run: Run) -> float:
    """The factor by which the tuned model's trained update is multiplied, read from forgetting.json: 1.0, unless the
    stage `forgetting` chose a smaller one; also 1.0 before that stage."""
    return float(read_json(run.forgetting).get("chosen", 1.0)) if run.forgetting.exists() else 1.0


def chosen_decoding(run: Run) -> str:
    """A name in `sampling.DECODINGS`, read from verdict.json: greedy, unless dev chose otherwise."""
    if not run.verdict.exists():
        return "greedy"
    return str(read_json(run.verdict)["arms"]["tuned"].get("decoding", "greedy"))
