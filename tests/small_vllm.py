"""A small server with vLLM's endpoints: a real model, adapters that PEFT loads at run time, token ids in and
out, streams, JSON schemas. It shares no code with the package."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from listening import listening
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer, RepetitionPenaltyLogitsProcessor


class SmallVllm:
    """``seen``: bodies of completions. ``mistaken``: multiplies every adapter's update. ``slow``: seconds a token."""

    def __init__(self, folder: Path, name: str = "the-base", rank: int = 64, context: int = 1024) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.name, self.rank, self.context = name, rank, context
        self.adapters: dict[str, PeftModel] = {}
        self.seen: list[dict[str, Any]] = []
        self.mistaken = 1.0
        self.slow = 0.0
        self.cancelled = 0
        self.ids = True  # whether it returns token ids

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/version")
        def version() -> Any:
            return {"version": "0.32.0"}

        @app.get("/v1/models")
        def models() -> Any:
            base = {"id": self.name, "owned_by": "vllm", "parent": None, "max_model_len": self.context, "root": "base"}
            tuned = [{"id": a, "owned_by": "vllm", "parent": self.name, "root": a} for a in self.adapters]
            return {"object": "list", "data": [base, *tuned]}

        @app.post("/v1/load_lora_adapter")
        async def load(request: Request) -> Any:
            given = await request.json()
            name, folder = given["lora_name"], Path(given["lora_path"])
            if name in self.adapters:
                return _error(400, f"The lora adapter '{name}' has already been loaded.")
            written = json.loads((folder / "adapter_config.json").read_text())
            if written["r"] > self.rank:
                return _error(400, f"LoRA rank {written['r']} is greater than max_lora_rank {self.rank}.")
            self.adapters[name] = PeftModel.from_pretrained(copy.deepcopy(self.base), folder).eval()
            return "Success"

        @app.post("/v1/unload_lora_adapter")
        async def unload(request: Request) -> Any:
            name = (await request.json())["lora_name"]
            if name not in self.adapters:
                return _error(404, f"The lora adapter '{name}' is not there.")
            del self.adapters[name]
            return "Success"

        @app.post("/v1/completions")
        async def completions(request: Request) -> Any:
            given = await request.json()
            self.seen.append(dict(given))
            if not self.ids:
                given.pop("return_token_ids", None)
            if given["model"] not in (self.name, *self.adapters):
                return _error(404, f"The model `{given['model']}` does not exist.")
            if len(given["prompt"]) + given["max_tokens"] > self.context:
                return _error(400, f"This model's maximum context length is {self.context} tokens.")
            tokens = self.tokens(given)
            if given.get("stream"):
                return StreamingResponse(self.stream(given, tokens), media_type="text/event-stream")
            choice = _choice([token for _, token in tokens], given, self.tokenizer)
            return {"choices": [choice], "usage": {"prompt_tokens": len(given["prompt"])}}

        return app

    async def stream(self, given: dict[str, Any], tokens: Iterator[Any]) -> AsyncIterator[str]:
        done = False
        try:
            for _, token in tokens:
                yield f"data: {json.dumps({'choices': [_choice([token], given, self.tokenizer)]})}\n\n"
                await asyncio.sleep(self.slow)
            usage = {"prompt_tokens": len(given["prompt"]), "prompt_tokens_details": {"cached_tokens": 3}}
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
            done = True
        finally:
            self.cancelled += not done

    def tokens(self, given: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each token of an answer, the stop token included, with what is known of it."""
        matcher = None
        if schema := given.get("structured_outputs", {}).get("json"):
            known = from_tokenizer(self.tokenizer, n_vocab=self.base.config.vocab_size)
            matcher = LLMatcher(known, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
        ids, seen, cache = list(given["prompt"]), 0, None
        noise = torch.Generator().manual_seed(given.get("seed") or 0)
        penalty = given.get("repetition_penalty", 1.0)
        for n in range(given["max_tokens"]):
            raw, cache = self.logits(given["model"], ids[seen:], cache)
            seen = len(ids)
            logp, scores = raw.log_softmax(-1), raw.clone()
            if penalty != 1:
                scores = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), scores[None])[0]
            for token, value in (given.get("logit_bias") or {}).items():
                scores[int(token)] += value
            if matcher is not None:
                mask = torch.tensor(list(matcher.compute_logit_bias())) > 0
                scores = scores.masked_fill(~mask[: len(scores)], float("-inf"))
            heat = given.get("temperature", 1.0)
            chosen = int(
                scores.argmax() if heat == 0 else torch.multinomial((scores / heat).softmax(-1), 1, generator=noise)
            )
            top = logp.topk(max(1, given.get("logprobs") or 0))
            best = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            ids.append(chosen)
            ended = chosen in given.get("stop_token_ids", [self.tokenizer.eos_token_id])
            if matcher is not None and not ended:
                matcher.consume_token(chosen)
                ended = matcher.is_stopped()
            reason = "stop" if ended else "length" if n + 1 == given["max_tokens"] else None
            yield n, {"id": chosen, "logprob": float(logp[chosen]), "best": best, "reason": reason}
            if ended:
                return

    @torch.inference_mode()
    def logits(self, model: str, ids: list[int], cache: Any) -> tuple[torch.Tensor, Any]:
        module = self.adapters.get(model, self.base)
        layers = [m for m in module.modules() if isinstance(m, LoraLayer)]
        for layer in layers:
            layer.scaling["default"] *= self.mistaken
        try:
            out = module(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            return out.logits[0, -1].float(), out.past_key_values
        finally:
            for layer in layers:
                layer.scaling["default"] /= self.mistaken


def _choice(tokens: list[dict[str, Any]], given: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    ids = [t["id"] for t in tokens]
    choice = {"index": 0, "text": tokenizer.decode(ids), "finish_reason": tokens[-1]["reason"]}
    if given.get("return_token_ids"):
        choice["token_ids"] = ids
    if given.get("logprobs") is not None:
        spelled = "token_id:{}" if given.get("return_tokens_as_token_ids") else "{}"
        choice["logprobs"] = {
            "tokens": [spelled.format(i) for i in ids],
            "token_logprobs": [t["logprob"] for t in tokens],
            "top_logprobs": [{spelled.format(i): v for i, v in t["best"].items()} for t in tokens],
        }
    return choice


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)


def serving(small: SmallVllm, port: int = 0) -> AbstractContextManager[str]:
    """Its URL."""
    return listening(small.app(), port)
