"""A library that loads models, as a server that `tunewright verify --at` can ask: /v1/models, /tokenize,
/v1/completions with token ids. It runs in the library's own environment and imports nothing of tunewright.

PYTHON library_server.py LIBRARY MODEL [--adapter PATH] --port N
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from typing import Any

import numpy as np

Logits = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Library:
    """``begin``: the logits after a prompt, and a function token -> the logits after it. ``encode``: the token ids of a
    conversation, if the library has a tokenizer. ``ends``: the tokens at which the library itself stops."""

    begin: Callable[[list[int]], tuple[Logits, Callable[[int], Logits]]]
    encode: Callable[[list[dict[str, Any]]], list[int]] | None
    ends: tuple[int, ...]


def of_transformers(model: Any, folder: str) -> Library:
    import torch
    from transformers import AutoTokenizer

    tokenizer, eos = AutoTokenizer.from_pretrained(folder), model.generation_config.eos_token_id
    model.eval()

    @torch.inference_mode()
    def begin(ids: list[int]) -> tuple[Logits, Callable[[int], Logits]]:
        past: Any = None

        @torch.inference_mode()
        def more(new: list[int]) -> Logits:
            nonlocal past
            out = model(torch.tensor([new]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            return np.asarray(out.logits[0, -1].float().numpy())

        return more(ids), lambda token: more([token])

    return Library(begin, encoder(tokenizer), tuple(np.atleast_1d(eos).tolist()))


def encoder(tokenizer: Any) -> Callable[[list[dict[str, Any]]], list[int]]:
    def encode(messages: list[dict[str, Any]]) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]

    return encode


def transformers(model: str, adapter: str) -> Library:
    import torch
    from transformers import AutoModelForCausalLM

    assert not adapter
    return of_transformers(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), model)


def peft(model: str, adapter: str) -> Library:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return of_transformers(PeftModel.from_pretrained(base, adapter), adapter)


def mlx_lm(model: str, adapter: str) -> Library:
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache

    module, tokenizer = load(model, adapter_path=adapter or None)
    module.set_dtype(mx.float32)

    def begin(ids: list[int]) -> tuple[Logits, Callable[[int], Logits]]:
        cache = make_prompt_cache(module)

        def more(new: list[int]) -> Logits:
            return np.array(module(mx.array([new]), cache=cache)[0, -1].astype(mx.float32))

        return more(ids), lambda token: more([token])

    return Library(begin, encoder(tokenizer), tuple(tokenizer.eos_token_ids))


def onnxruntime_genai(model: str, adapter: str) -> Library:
    import onnxruntime_genai as og

    assert not adapter
    module = og.Model(model)
    with open(f"{model}/genai_config.json", encoding="utf-8") as file:
        eos = json.load(file)["model"]["eos_token_id"]

    def begin(ids: list[int]) -> tuple[Logits, Callable[[int], Logits]]:
        options = og.GeneratorParams(module)
        options.set_search_options(do_sample=False, max_length=len(ids) + 64)
        generator = og.Generator(module, options)

        def more(new: list[int]) -> Logits:
            generator.append_tokens(new)
            return np.array(generator.get_output("logits"))[0, -1].astype(np.float32)

        return more(ids), lambda token: more([token])

    return Library(begin, None, tuple(np.atleast_1d(eos).tolist()))


def llama_cpp_python(model: str, adapter: str) -> Library:
    import llama_cpp

    f32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    module = llama_cpp.Llama(model, n_ctx=1024, n_threads=2, lora_path=adapter or None, verbose=False, **f32)
    size = module.n_vocab()

    def begin(ids: list[int]) -> tuple[Logits, Callable[[int], Logits]]:
        module.reset()

        def more(new: list[int]) -> Logits:
            module.eval(new)
            return np.ctypeslib.as_array(llama_cpp.llama_get_logits(module.ctx), (size,)).copy()

        return more(ids), lambda token: more([token])

    return Library(begin, None, (module.token_eos(),))


LIBRARIES: dict[str, Callable[[str, str], Library]] = {
    "transformers": transformers,
    "peft": peft,
    "mlx-lm": mlx_lm,
    "onnxruntime-genai": onnxruntime_genai,
    "llama-cpp-python": llama_cpp_python,
}


def completed(library: Library, prompt: list[int], limit: int) -> dict[str, Any]:
    """The greedy answer, in the form of OpenAI's completions."""
    ids, logprobs, ended = [], [], False
    logits, step = library.begin(prompt)
    for _ in range(limit):
        logits = logits.astype(np.float64)
        token = int(logits.argmax())
        ids.append(token)
        logprobs.append(float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
        if ended := token in library.ends:
            break
        logits = step(token)
    choice = {"text": "", "token_ids": ids, "finish_reason": "stop" if ended else "length"}
    choice["logprobs"] = {"token_logprobs": logprobs}
    return {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("model")
    parser.add_argument("--adapter", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    library = LIBRARIES[given.library](given.model, given.adapter)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = {"version": metadata.version(given.library)}
            models = {"data": [{"id": given.library, "owned_by": given.library, "root": given.adapter or given.model}]}
            self.reply({"/v1/models": models, "/version": version}.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/completions":
                self.reply(completed(library, body["prompt"], body["max_tokens"]))
            elif self.path == "/tokenize" and library.encode is not None:
                self.reply({"tokens": library.encode(body["messages"])})
            else:
                self.reply(None)

        def reply(self, body: object) -> None:
            text = json.dumps(body).encode()
            self.send_response(404 if body is None else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    HTTPServer((given.host, given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
