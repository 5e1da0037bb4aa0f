"""How far a model's next-token distribution is from a teacher's: over the whole vocabulary, without ever holding all
logits of either.

The generalized Jensen-Shannon divergence of GKD (Agarwal et al. 2023, 2306.13649, Eq. 1), and the two KLs. At its ends
it is 0; only divided by beta, or by 1 - beta, does it tend to one of the KLs, which therefore have names of their own.
Axes: N predicted tokens, V vocabulary, D and E widths of student and teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p
from typing import Any

import torch
from torch import Tensor

from tunewright.core.config import Divergence
from tunewright.model import losses


@dataclass(frozen=True)
class Measure:
    """``kind``: forward, KL(teacher || student); reverse, KL(student || teacher); jsd, beta * KL(teacher || m) +
    (1 - beta) * KL(student || m) with m = beta * teacher + (1 - beta) * student. ``temperature``: logits of both are
    divided by it; the divergence is not multiplied by its square."""

    kind: Divergence = "forward"
    beta: float = 0.5
    temperature: float = 1.0


@dataclass(frozen=True)
class Taught:
    """A teacher's hidden states at the predicted tokens, and its output head, which makes logits of them."""

    hidden_NE: Tensor
    head_VE: Tensor


def divergence(student_nV: Tensor, teacher_nV: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """(D_n in nats, its gradient with respect to the student's logits) of logits in one dtype.

    With s and t the distributions and g_v the derivative of D by s_v, the gradient is s * (g - sum of s * g).
    """
    logs_nV = (student_nV / measure.temperature).log_softmax(-1)
    logt_nV = (teacher_nV / measure.temperature).log_softmax(-1)
    s_nV, t_nV = logs_nV.exp(), logt_nV.exp()
    if measure.kind == "forward":
        total_n = (t_nV * (logt_nV - logs_nV)).sum(-1)
        return total_n, (s_nV - t_nV) / measure.temperature
    if measure.kind == "reverse":
        g_nV = logs_nV - logt_nV
        total_n = (s_nV * g_nV).sum(-1)
        return total_n, s_nV * (g_nV - total_n[:, None]) / measure.temperature
    beta = measure.beta
    logm_nV = torch.logaddexp(logt_nV + log(beta), logs_nV + log1p(-beta))
    g_nV = (1 - beta) * (logs_nV - logm_nV)
    own_n = (s_nV * g_nV).sum(-1)
    total_n = own_n + beta * (t_nV * (logt_nV - logm_nV)).sum(-1)
    return total_n, s_nV * (g_nV - own_n[:, None]) / measure.temperature


def of_hidden(hidden_ND: Tensor, head_VD: Tensor, taught: Taught, weight_N: Tensor, measure: Measure) -> Tensor:
    """weight_n * D_n of the student's hidden_ND @ head_VD.T, in float32 or better, the logits of both in chunks that
    are dropped. As in `losses.head_nats`, a vector a token is the whole gradient, and is computed with the chunk."""
    assert not head_VD.requires_grad, "a trained head needs its own gradient: use of_logits"
    of_N: Tensor = _Divergence.apply(hidden_ND, head_VD, taught, weight_N, measure)  # type: ignore[no-untyped-call]
    return of_N


def of_logits(logits_NV: Tensor, taught: Taught, weight_N: Tensor, measure: Measure) -> Tensor:
    """The same of the student's logits, for a head that is trained or more than a matrix: these are held, and their
    gradient, but never the teacher's."""
    of_N: Tensor = _Divergence.apply(logits_NV, None, taught, weight_N, measure)  # type: ignore[no-untyped-call]
    return of_N


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_ND: Tensor, head_VD: Tensor | None, taught: Taught, weight_N: Tensor, measure: Measure
    ) -> Tensor:
        wide = torch.float64 if input_ND.dtype == torch.float64 else torch.float32
        vocabulary = min(len(taught.head_VE), input_ND.shape[1] if head_VD is None else len(head_VD))
        teacher_VE, head_VD = taught.head_VE[:vocabulary], None if head_VD is None else head_VD[:vocabulary]
        weight_N = weight_N.to(wide)
        of_N = torch.empty(len(input_ND), dtype=wide, device=input_ND.device)
        grad_ND = torch.zeros_like(input_ND) if input_ND.requires_grad else None
        rows = losses.rows_at_once(input_ND, teacher_VE)
        for start in range(0, len(input_ND), rows):
            part = slice(start, start + rows)
            own_nV = input_ND[part, :vocabulary] if head_VD is None else input_ND[part] @ head_VD.T
            teacher_nV = taught.hidden_NE[part] @ teacher_VE.T
            of_n, grad_nV = divergence(own_nV.to(wide), teacher_nV.to(wide), measure)
            of_N[part] = of_n * weight_N[part]
            if grad_ND is not None:
                grad_nV *= weight_N[part, None]
                if head_VD is None:
                    grad_ND[part, :vocabulary] = grad_nV.to(input_ND.dtype)
                else:
                    grad_ND[part] = grad_nV.to(head_VD.dtype) @ head_VD
        ctx.save_for_backward(*([grad_ND] if grad_ND is not None else []))
        return of_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype)[:, None], None, None, None, None
