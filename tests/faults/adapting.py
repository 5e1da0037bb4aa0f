"""Adapters and weights: what is trained, in which precision, and what survives saving."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from build import (
    adapter_note,
    byte_tokenizer,
    learner_of,
    plan_of,
    rows,
    steps,
    tiny_config,
    tiny_lm,
    tiny_model,
    train_rows,
    with_adapter,
)
from safetensors import safe_open

from faults import Fault, Patch
from faults.computing import model_of
from tunewright.core.config import AdapterConfig, MethodOptions
from tunewright.data.messages import Chat, Message
from tunewright.export import merged
from tunewright.methods import METHODS, precomputed
from tunewright.methods.preference import Preference
from tunewright.model import adapters, kl, peft_format
from tunewright.model.language_model import LanguageModel
from tunewright.tokens.sequences import TrainRow, single
from tunewright.tokens.template import Template
from tunewright.train import selftest
from tunewright.train.step import take_step

TEMPLATE = Template(byte_tokenizer())
IDS = torch.tensor([[1, 5, 9, 200, 31]])


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        actual: torch.Tensor = module(IDS).logits
    return actual


def scale_survives() -> None:
    """PEFT, which reads alpha and rank itself, computes the same logits."""
    from peft import PeftModel

    plan = plan_of(adapter=AdapterConfig(kind="rslora", rank=4, alpha=8.0))
    model = model_of(plan, torch.float32).module
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_format.save(model, plan.adapter, Path(folder), "base", adapter_note("base"))
        theirs = PeftModel.from_pretrained(tiny_model(), folder).eval()
        assert torch.allclose(logits(model), logits(theirs), rtol=0, atol=1e-5)
    with adapters.scaled(model, 0.0):
        assert torch.equal(logits(model), logits(tiny_model()))


def alpha_as_configured(patch: Patch) -> None:
    """As a program reads it that does not know rsLoRA."""
    plain = peft_format.write_json
    patch.setattr(peft_format, "write_json", lambda file, value: plain(file, {**value, "lora_alpha": 8.0}))


def the_adapter_trains_and_nothing_else() -> None:
    plan = plan_of(steps=3, warmup_steps=0)
    model = tiny_model()
    adapters.attach(model, plan.adapter, 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    steps(model, train_rows(8), plan)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("lora_" not in name), name


def half_is_frozen(patch: Patch) -> None:
    plain = adapters.attach

    def attach(model: Any, config: AdapterConfig, seed: int) -> Any:
        done = plain(model, config, seed)
        for layer in adapters.adapted(model).values():
            layer.lora_A.requires_grad_(False)
        return done

    patch.setattr(adapters, "attach", attach)


def merged_in_float32() -> None:
    plan = plan_of()
    model = tiny_model().to(torch.bfloat16)
    adapters.attach(model, plan.adapter, 0)
    for p in adapters.trainable(model).values():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05
    layer = next(iter(adapters.adapted(model).values()))
    exact = (
        (layer.base.weight.double() + layer.scaling * (layer.lora_B.double() @ layer.lora_A.double()))
        .float()
        .to(torch.bfloat16)
    )
    adapters.merge(model)
    away = (layer.base.weight.float() - exact.float()).abs()
    assert int((away > 0).sum()) <= 0.001 * away.numel()  # a tie may be rounded either way


def merged_in_bfloat16(patch: Patch) -> None:
    def merged(self: Any) -> torch.Tensor:
        update = self.scaling * (self.lora_B.to(torch.bfloat16) @ self.lora_A.to(torch.bfloat16))
        return torch.as_tensor(self.base.weight + update)

    patch.setattr(adapters.LoRALinear, "merged_weight", merged)


def the_head_is_saved() -> None:
    """Full fine-tuning of a model whose head is not tied to its embeddings."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("llama", tie_word_embeddings=False)).eval()
    with tempfile.TemporaryDirectory() as folder:
        merged.save(model, TEMPLATE, Path(folder) / "merged", "float32")
        again = AutoModelForCausalLM.from_pretrained(Path(folder) / "merged").eval()
    assert torch.equal(logits(model), logits(again))


def taken_for_tied(patch: Patch) -> None:
    plain = transformers.PreTrainedModel.save_pretrained

    def save(self: Any, folder: Any, **more: Any) -> None:
        own = {k: v for k, v in self.state_dict().items() if k != "lm_head.weight"}
        plain(self, folder, state_dict=own, **more)

    patch.setattr(transformers.PreTrainedModel, "save_pretrained", save)


def moments_are_float32() -> None:
    """With the base in bfloat16, a step far below that precision still changes the trained tensors."""
    plan = plan_of(lr=1e-6, warmup_steps=0, steps=2)
    model = tiny_model().to(torch.bfloat16)
    adapters.attach(model, plan.adapter, 0)
    student = learner_of(model, plan)
    parameters = student.parameters
    before = {n: p.detach().clone() for n, p in parameters.items()}
    for s in range(2):
        take_step(student, train_rows(8), plan, s)
    moments = [v for state in student.optimizer.state.values() for k, v in state.items() if k != "step"]
    assert {p.dtype for p in parameters.values()} | {m.dtype for m in moments} == {torch.float32}
    moved = [float((p.detach() - before[n]).abs().max()) for n, p in parameters.items() if "lora_A" in n]
    assert all(moved)


def all_in_bfloat16(patch: Patch) -> None:
    plain = adapters.attach

    def attach(model: Any, config: AdapterConfig, seed: int) -> Any:
        done = plain(model, config, seed)
        model.to(torch.bfloat16)
        return done

    patch.setattr(adapters, "attach", attach)


def saved_as_declared() -> None:
    with tempfile.TemporaryDirectory() as folder:
        merged.save(tiny_model(), TEMPLATE, Path(folder) / "merged", "bfloat16")
        with safe_open(Path(folder) / "merged" / "model.safetensors", "pt") as tensors:
            actual = {tensors.get_slice(k).get_dtype() for k in tensors.keys()}  # noqa: SIM118
    assert actual == {"BF16"}


def saved_as_it_was(patch: Patch) -> None:
    plain = merged.save
    patch.setattr(merged, "save", lambda model, template, folder, dtype: plain(model, template, folder, "float32"))


def off_is_the_base() -> None:
    plan = plan_of(steps=3, lr=0.05, warmup_steps=0)
    model = tiny_lm()
    frozen = copy.deepcopy(model)
    adapters.attach(model.module, plan.adapter, 0)
    data = rows(4)
    start = kl.measure(model, data, [1.0], "packed")
    assert not start.kl_SR.any()
    steps(model.module, [single(r) for r in data], plan)
    with adapters.off(model.module):
        assert torch.equal(logits(model.module), logits(frozen.module))
    own, against = (kl.measure(model, data, [1.0], "packed", base=b) for b in (None, frozen))
    assert own.kl_SR.sum() > 0
    assert abs(own.kl_SR - against.kl_SR).max() < 1e-4


def never_off(patch: Patch) -> None:
    import contextlib

    patch.setattr(adapters, "off", lambda model: contextlib.nullcontext())


def preferences_begin_at_their_formula() -> None:
    """The policy is an adapter that was trained before, so that the base is another model."""
    model, method = with_adapter("llama", torch.float32, vocabulary=300), METHODS["dpo"]
    asked = plan_of(method="dpo", layout="shared", options=method.options(MethodOptions()))
    asking, good, bad = Message("user", "q"), Message("assistant", "yes"), Message("assistant", "never, ever")
    rows = method.prepare(Template(byte_tokenizer()), Chat((asking, good), "x:1", rejected=bad), 0, None)
    with torch.no_grad():
        selftest.check_start(model, precomputed(model, rows, asked), asked)


def base_as_reference(patch: Patch) -> None:
    precompute = Preference.precompute

    def of_the_base(self: Preference, model: LanguageModel, *rest: Any) -> list[TrainRow]:
        with adapters.off(model.module):
            return precompute(self, model, *rest)

    patch.setattr(Preference, "precompute", of_the_base)


def pissa_leaves_the_base() -> None:
    """At the start and switched off; and PEFT, which loads the export on the base itself, computes the same logits."""
    from peft import PeftModel

    plan, model = plan_of(adapter=AdapterConfig(rank=4, init="pissa")), tiny_model()
    adapters.attach(model, plan.adapter, 0)
    assert torch.equal(logits(model), logits(tiny_model()))
    steps(model, train_rows(4), plan)
    with adapters.off(model):
        assert torch.equal(logits(model), logits(tiny_model()))
    with tempfile.TemporaryDirectory() as folder:
        peft_format.save(model, plan.adapter, Path(folder), "base", adapter_note("base"))
        theirs = PeftModel.from_pretrained(tiny_model(), folder).eval()
        assert torch.allclose(logits(model), logits(theirs), rtol=0, atol=1e-5)


def subtracted_from_the_base(patch: Patch) -> None:
    """As PEFT does it."""

    def begin(self: adapters.LoRALinear, a: torch.Tensor, b: torch.Tensor) -> None:
        with torch.no_grad():
            self.lora_A.copy_(a)
            self.lora_B.copy_(b)
            self.base.weight.sub_(self.scaling * b @ a)
        self.start_A = self.start_B = None

    patch.setattr(adapters.LoRALinear, "begin", begin)


def all_of_it_is_saved() -> None:
    """What was saved makes the same model of one whose frozen tensors have other values, as on another machine, and
    PEFT makes it of the export, with a seed that is not its default."""
    from peft import PeftModel

    options = {"projection_prng_key": 7}
    for config in (AdapterConfig(rank=4, init="pissa"), AdapterConfig(kind="peft:vera", rank=4, options=options)):
        model, again = tiny_model(), tiny_model()
        adapters.attach(model, config, 0)
        steps(model, train_rows(4), plan_of(adapter=config, lr=0.05))
        saved = {name: tensor.detach().clone() for name, tensor in adapters.update_tensors(model).items()}
        adapters.attach(again, config)
        with torch.no_grad():
            for name, tensor in again.named_buffers():
                if "start_" in name or "vera_" in name:
                    tensor.add_(1.0)
            for name, tensor in adapters.update_tensors(again).items():
                tensor.copy_(saved[name])
        assert torch.equal(logits(model), logits(again))
        with tempfile.TemporaryDirectory() as folder:
            peft_format.save(model, config, Path(folder), "base", adapter_note("base"))
            theirs = PeftModel.from_pretrained(tiny_model(), folder).eval()
            assert torch.allclose(logits(model), logits(theirs), rtol=0, atol=1e-5)


def only_what_is_trained(patch: Patch) -> None:
    patch.setattr(adapters, "update_tensors", adapters.trainable)


FAULTS = [
    Fault(15, "DPO's reference is not the model before training", "LLaMA-Factory PR 10779, TRL 495, 744, 1340 and 2042, DPO 34",
          "the first loss is what the method's formula gives for equal models; SELFTEST_START", preferences_begin_at_their_formula, base_as_reference),
    Fault(16, "the LoRA scaling factor changes when the adapter is loaded", "", "PEFT computes the same logits from the saved adapter; at scale 0 the model is the base, bit for bit",
          scale_survives, alpha_as_configured),
    Fault(17, "the adapter does not train", "", "after three steps, every tensor of the adapter has changed and no other has; SELFTEST_GRADIENT",
          the_adapter_trains_and_nothing_else, half_is_frozen),
    Fault(18, "merging rounds the update away", "peft 1388, 2321, 1043, transformers 31293", "the update is added in float32 and rounded once; EXPORT_MISMATCH",
          merged_in_float32, merged_in_bfloat16),
    Fault(19, "a trained head is lost with tied embeddings", "peft 2018, PR 2972, transformers 45127, unsloth PR 9331",
          "the reloaded model gives the same logits, in a fresh process; EXPORT_MISMATCH", the_head_is_saved, taken_for_tied),
    Fault(23, "weights and moments in bfloat16", "AReaL PR 1369, Model-Optimizer PR 2322", "trained tensors and their moments are float32; even a tiny step changes them",
          moments_are_float32, all_in_bfloat16),
    Fault(24, "weights are saved in another dtype than declared", "transformers 33780, 32265, pytorch 108381", "the file has the declared dtype (one process)",
          saved_as_declared, saved_as_it_was),
    Fault(50, "an adapter's initial values are subtracted from the base", "peft 1626, PR 2184",
          "PiSSA switched off is the base, bit for bit, and the export is right on it; SELFTEST_BASE, EXPORT_MISMATCH",
          pissa_leaves_the_base, subtracted_from_the_base),
    Fault(51, "frozen tensors of an adapter are not saved", "", "saved tensors alone make the same model; EXPORT_MISMATCH", all_of_it_is_saved, only_what_is_trained),
    Fault(33, "KL is measured against a base that was trained too", "", "KL is 0 at step 0; afterwards the base equals a frozen copy, bit for bit; SELFTEST_BASE", off_is_the_base, never_off),
]  # fmt: skip
