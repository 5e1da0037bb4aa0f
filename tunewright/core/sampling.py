"""How the next token is chosen from a model's predictions, and the ways among which dev chooses for free text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """``repetition_penalty``: divides positive logits, and multiplies negative ones, of the tokens that prompt or
    answer have already (Keskar et al. 2019, 1909.05858); 1 for none. ``temperature``: 0 for the most probable token;
    otherwise tokens are drawn, from noise that is a function of ``seed``, prompt and place, so the same prompt gets the
    same answer."""

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    seed: int = 0

    @property
    def generation_config(self) -> dict[str, float | bool]:
        """As transformers, vLLM and others read it from generation_config.json."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        values: dict[str, float | bool] = drawn if self.temperature else {"do_sample": False}
        if self.repetition_penalty != 1:
            values["repetition_penalty"] = self.repetition_penalty
        return values

    @property
    def gguf(self) -> dict[str, float]:
        """As the keys general.sampling.* of a GGUF file, which llama-server and others take where a request says
        nothing. Its own defaults are a temperature of 0.8 and a penalty on the last 64 tokens."""
        drawn = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} if self.temperature else {}
        penalty = {"penalty_repeat": self.repetition_penalty, "penalty_last_n": -1}
        return {"temp": self.temperature, **drawn, **(penalty if self.repetition_penalty != 1 else {})}

    @property
    def llama_cpp(self) -> dict[str, float]:
        """As llama-cpp-python's arguments, which cut the tail of the distribution by default."""
        drawn = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": self.seed} if self.temperature else {}
        penalty = {"repeat_penalty": self.repetition_penalty} if self.repetition_penalty != 1 else {}
        return {"temperature": self.temperature, **drawn, **penalty}


GREEDY = Sampling()
DECODINGS: dict[str, Sampling] = {
    "greedy": GREEDY,
    "penalty": Sampling(repetition_penalty=1.1),
    "sampled": Sampling(temperature=0.7),
}
