"""The loaded modules of one process: the only mutable object of a run. Callers name the weights that they need; which
weights a module contains is never assumed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tunewright.core.config import PAIRED, RATED, REWARDED, AdapterConfig, Kernels, Plan
from tunewright.model import adapters, fused_llama, language_model, loading, several
from tunewright.model.facts import Facts
from tunewright.model.heads import teacher, vectors
from tunewright.model.language_model import LanguageModel
from tunewright.runtime.weights import Weights
from tunewright.train import checkpoints


class Models:
    """One module with the adapter attached, reused for all weights of the run and its branches; and one of the base, if
    training changes all weights. ``device``: cpu or cuda."""

    def __init__(self, facts: Facts, device: str) -> None:
        self._facts, self._device = facts, device
        self._adapted: LanguageModel | None = None
        self._base: LanguageModel | None = None
        self._kind: tuple[AdapterConfig, str, int, bool] | None = None  # what the adapted module was built for
        self._initial: tuple[object, dict[str, torch.Tensor]] | None = (
            None  # values that take long to compute, and of what
        )
        self.initial_seconds = 0.0  # that they took
        self._teacher: tuple[object, torch.Tensor] | None = None  # an output head, and whose it is
        self._loaded: str | None = None  # sha256 of the weights in it; None: unknown, or being trained

    @contextmanager
    def at(self, weights: Weights) -> Iterator[LanguageModel]:
        """A model that computes with exactly these weights. Raises RUN_DAMAGED if their file has changed."""
        if weights.teacher:
            assert weights.plan.teacher is not None
            dtype = loading.torch_dtype(weights.plan.dtype)
            yield teacher.load(weights.plan.teacher, dtype, torch.device(self._device))
            return
        if weights.full_precision and self._facts.packed:
            dtype = loading.torch_dtype(weights.plan.dtype)
            yield loading.load(self._facts.path, dtype, self._device)  # too large to be kept
            return
        if weights.file is None:
            with self._at_base(weights.plan) as model:
                yield model
            return
        model = self._module(weights.plan)
        if self._loaded != weights.sha256:
            self._loaded = None
            checkpoints.check_weights(weights.file, weights.sha256)
            checkpoints.load_weights(weights.file, adapters.update_tensors(model.module))
            self._loaded = weights.sha256
        before = self._loaded
        with adapters.scaled(model.module, weights.scale):
            yield model
        assert self._loaded == before, "other weights were loaded while these were in use"

    def untrained(self, plan: Plan) -> LanguageModel:
        """A model to train: the base with the adapter's initial values, which depend only on the plan's seed."""
        if plan.adapter.kind == "none":
            self._adapted = None  # all weights may have been trained: only the file still has the base's
        model = self._module(plan)
        self._initialise(model.module, plan)
        model.module.zero_grad(set_to_none=True)  # what an earlier training has left
        self._loaded = None
        return self.taught(model, plan)

    def taught(self, model: LanguageModel, plan: Plan) -> LanguageModel:
        """The model with the output head of the plan's teacher, if it has one."""
        if plan.teacher is None:
            return model
        key = plan.teacher.sha256, plan.dtype
        if self._teacher is None or self._teacher[0] != key:
            self._teacher = key, teacher.head(plan.teacher, loading.torch_dtype(plan.dtype), model.device)
        return dataclasses.replace(model, teacher_VE=self._teacher[1])

    def _initialise(self, module: nn.Module, plan: Plan) -> None:
        if plan.adapter.init == "zero":
            adapters.initialise(module, plan.adapter, plan.seed)
            return
        made_for, started = (plan.adapter, plan.dtype, plan.seed, len(plan.labels)), time.monotonic()
        if self._initial is None or self._initial[0] != made_for:
            adapters.initialise(module, plan.adapter, plan.seed)
            tensors = {name: tensor.detach().clone() for name, tensor in adapters.update_tensors(module).items()}
            self._initial, self.initial_seconds = (made_for, tensors), time.monotonic() - started
        with torch.no_grad():
            for name, tensor in adapters.update_tensors(module).items():
                tensor.copy_(self._initial[1][name])

    def several(self, plans: Sequence[Plan]) -> list[LanguageModel]:
        """Models to train together: the adapters of the plans on one base. They are not kept."""
        self.release()
        dtype = loading.torch_dtype(plans[0].dtype)
        base, models = loading.load(self._facts.path, dtype, self._device, self._facts.packed), []
        for module, plan in zip(several.on_one_base(base.module, len(plans)), plans, strict=True):
            adapters.attach(module, plan.adapter, plan.seed)
            models.append(dataclasses.replace(base, module=module, kernels=_kernels(module, plan)))
        return models

    def merged(self, weights: Weights) -> LanguageModel:
        """A separate model, with the adapter merged into its linear layers."""
        assert weights.file is not None
        checkpoints.check_weights(weights.file, weights.sha256)
        model = self._load(weights.plan)
        checkpoints.load_weights(weights.file, adapters.update_tensors(model.module))
        adapters.scale_in_place(model.module, weights.scale)
        adapters.merge(model.module)
        return dataclasses.replace(model, kernels="transformers")

    def release(self) -> None:
        """Free the memory of the modules; they are loaded again when they are needed."""
        self._adapted = self._base = self._kind = self._loaded = self._teacher = None
        torch.cuda.empty_cache()

    @contextmanager
    def _at_base(self, plan: Plan) -> Iterator[LanguageModel]:
        if plan.adapter.kind != "none":
            model = self._module(plan)
            with adapters.off(model.module):
                yield model
            return
        if self._base is None:
            self._base = loading.load(self._facts.path, loading.torch_dtype(plan.dtype), self._device)
        yield self._base

    def _module(self, plan: Plan) -> LanguageModel:
        """The adapted module, configured as the plan says."""
        kind = (plan.adapter, plan.dtype, len(plan.labels), self._facts.draws and _computes_twice(plan))
        if self._adapted is None or self._kind != kind:
            self._adapted = None  # not two in memory
            self._adapted, self._kind, self._loaded = self._load(plan), kind, None
        module = self._adapted.module
        kernels = _kernels(module, plan)
        if plan.gradient_checkpointing == "layers" and kernels == "transformers":
            language_model.recompute_layers(module, on=True)
        return dataclasses.replace(self._adapted, kernels=kernels, pooling=plan.pooling)

    def _load(self, plan: Plan) -> LanguageModel:
        model = loading.load(self._facts.path, loading.torch_dtype(plan.dtype), self._device, self._facts.packed)
        adapters.attach(model.module, plan.adapter, outputs=len(plan.labels))
        if _computes_twice(plan):
            vectors.without_dropout(model.module)
        if plan.embed:
            vectors.freeze_output_head(model.module)
        return language_model.of(model.module) if plan.adapter.kind == "none" else model


def _computes_twice(plan: Plan) -> bool:
    """Whether a step computes something twice, which must be the same both times: without dropout of the base's own."""
    return plan.embed is not None or plan.method in (*REWARDED, *PAIRED, *RATED)


def _kernels(module: nn.Module, plan: Plan) -> Kernels:
    """The plan's, unless the adapter is one that they do not support."""
    asked = plan.kernels
    return asked if asked == "transformers" or fused_llama.applies(module) else "transformers"
