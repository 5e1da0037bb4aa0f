"""A server with OpenAI's completions API over a real tiny model, in the manner of vLLM, of llama-server, or of one that
shows no token ids; and with the mistakes that servers make."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


@dataclass
class TinyServer:
    """``models``: by the name that is asked for; ``file``: the file or folder that it says it serves. The other fields
    are mistakes, or the lack of something."""

    models: dict[str, Any]
    tokenizer: Any
    stop: tuple[int, ...]
    manner: str = "vllm"
    file: str = "/models/x.gguf"
    prefix: str = "/v1"
    chat_template: str | None = None
    before: list[int] = field(default_factory=list)  # ids before every prompt
    before_chat: list[int] = field(default_factory=list)
    encode: Callable[[str], list[int]] | None = None
    rank: int = 0  # of the token that is chosen: 0 is the likeliest
    context: int = 10_000
    stops: bool = True
    shows_ids: bool = True
    logprobs: bool = True
    takes_ids: bool = True
    renders: bool = True
    counts: bool = True
    key: str = ""
    seconds: float = 0.0
    status: int = 200
    body: str | None = None

    def reply(self, path: str, given: dict[str, Any] | None, key: str) -> tuple[int, Any]:
        """(status, reply) to a request."""
        time.sleep(self.seconds)
        if self.key and key != f"Bearer {self.key}":
            return 401, {"error": {"message": "no key"}}
        if self.body is not None:
            return self.status, self.body
        if self.status != 200 and path.endswith("completions"):
            return self.status, {"error": {"message": "something broke"}}
        if given is None:
            return self.facts(path)
        if path == f"{self.prefix}/completions":
            prompt = given["prompt"]
            if not isinstance(prompt, str) and not self.takes_ids:
                return 400, {"error": {"message": "invalid prompt type"}}
            ids = self.ids(prompt) if isinstance(prompt, str) else prompt
            return self.complete(given, [*self.before, *ids], chat=False)
        if path == f"{self.prefix}/chat/completions":
            return self.complete(given, self.chat_ids(given), chat=True)
        if path == "/tokenize" and self.renders:
            ids = self.ids(given["content"]) if "content" in given else self.chat_ids(given)
            return 200, {"tokens": [*self.before_chat, *ids] if "content" in given else ids}
        if path == "/completions" and self.manner == "llamacpp":  # its own protocol, not OpenAI's
            return 200, {"content": "no", "tokens": [], "stop": True}
        if path == "/apply-template" and self.renders and self.manner == "llamacpp":
            return 200, {"prompt": self.text(given)}
        return 404, {"error": {"message": "not here"}}

    def facts(self, path: str) -> tuple[int, Any]:
        if path == f"{self.prefix}/models" or (path == "/models" and self.manner == "llamacpp"):
            root = {"root": self.file} if self.manner == "vllm" else {}
            return 200, {"data": [{"id": name, "owned_by": self.manner, **root} for name in self.models]}
        if path == "/health":
            return 200, {"status": "ok"}
        if path == "/version" and self.manner == "vllm":
            return 200, {"version": "0.32.0"}
        if path == "/props" and self.manner == "llamacpp":
            return 200, {"build_info": "b7000-abc", "model_path": self.file}
        return 404, "<html>no such page</html>"

    def ids(self, text: str) -> list[int]:
        return self.encode(text) if self.encode else self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text(self, given: dict[str, Any]) -> str:
        how = {"tools": given.get("tools"), "tokenize": False, "add_generation_prompt": True}
        return str(self.tokenizer.apply_chat_template(given["messages"], chat_template=self.chat_template, **how))

    def chat_ids(self, given: dict[str, Any]) -> list[int]:
        return [*self.before_chat, *self.ids(self.text(given))]

    def complete(self, given: dict[str, Any], prompt: list[int], chat: bool) -> tuple[int, Any]:
        if self.manner != "llamacpp" and given["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{given['model']}` does not exist."}}
        module = self.models.get(given["model"], next(iter(self.models.values())))
        ids, values, best = self.answer(module, prompt[-self.context :], given["max_tokens"])
        ended = self.stops and bool(ids) and ids[-1] in self.stop
        choice: dict[str, Any] = {"finish_reason": "stop" if ended else "length"}
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        choice |= {"message": {"content": text}} if chat else {"text": text}
        if self.logprobs:
            tokens = [self.tokenizer.decode([i]) for i in ids]
            if chat or self.manner == "llamacpp":
                shown = [{"id": i} if self.shows_ids and self.manner == "llamacpp" else {} for i in ids]
                content = [
                    {**one, "token": t, "logprob": v, "top_logprobs": [{"token": "", "logprob": b}]}
                    for one, t, v, b in zip(shown, tokens, values, best, strict=True)
                ]
                choice["logprobs"] = {"content": content}
            else:
                top = [{"a": v, "b": b} for v, b in zip(values, best, strict=True)]
                choice["logprobs"] = {"tokens": tokens, "token_logprobs": values, "top_logprobs": top}
        if self.manner == "vllm" and self.shows_ids and given.get("return_token_ids"):
            choice["token_ids"] = ids
        usage = {"prompt_tokens": min(len(prompt), self.context)} if self.counts else {}
        return 200, {"choices": [choice], "usage": usage}

    def answer(self, module: Any, prompt: list[int], limit: int) -> tuple[list[int], list[float], list[float]]:
        """Ids of an answer, the stop token included; their log probabilities, and the largest at each place."""
        ids: list[int] = []
        values: list[float] = []
        best: list[float] = []
        cache, new = None, prompt
        with torch.inference_mode():
            while len(ids) < limit:
                out = module(torch.tensor([new]), past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                logp = out.logits[0, -1].float().log_softmax(-1)
                chosen = int(logp.topk(self.rank + 1).indices[self.rank])
                ids.append(chosen)
                values.append(float(logp[chosen]))
                best.append(float(logp.max()))
                if self.stops and chosen in self.stop:
                    break
                new = [chosen]
        return ids, values, best


@contextmanager
def serving(server: TinyServer) -> Iterator[str]:
    """The URL of the server, which runs in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def answer(self, given: dict[str, Any] | None) -> None:
            status, value = server.reply(self.path, given, self.headers.get("authorization", ""))
            content = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
