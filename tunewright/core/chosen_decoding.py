"""How the tuned model's tokens are chosen, as its run decided."""

from tunewright.core.run_folder import Run, read_json


def chosen_decoding(run: Run) -> str:
    """A name in `sampling.DECODINGS`, read from verdict.json: greedy, unless dev chose otherwise."""
    if not run.verdict.exists():
        return "greedy"
    return str(read_json(run.verdict)["arms"]["tuned"].get("decoding", "greedy"))
