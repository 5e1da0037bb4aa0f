"""Initial factors of an update of a weight: A and B, of which the update is made. Axes: I inputs, O outputs, R rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Halko et al. 2011 (0909.4061), algorithm 4.4: more vectors than are wanted, and iterations of the subspace.
EXTRA, ITERATIONS = 16, 8
LARGE = 1 << 23  # numbers of a weight


def uniform(inputs: int, rank: int, generator: torch.Generator) -> Tensor:
    """a_RI in float32: uniform as PEFT's start, kaiming_uniform(a=sqrt(5))."""
    bound = 1 / math.sqrt(inputs)
    return torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)


def factors(
    weight_OI: Tensor, rank: int, scaling: float, how: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(a_RI, b_OR) for a frozen weight. ``how``: pissa or olora."""
    with _alone(weight_OI):
        return pissa(weight_OI, rank, scaling, generator) if how == "pissa" else olora(weight_OI, rank)


def pissa(weight_OI: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(a_RI, b_OR): scaling * BA is the weight's best approximation of that rank (Meng et al. 2024, 2404.02948)."""
    u_OR, s_R, v_RI = largest(weight_OI, rank, generator)
    root_R = (s_R / scaling).sqrt()
    return root_R[:, None] * v_RI, u_OR * root_R


def olora(weight_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(a_RI, b_OR): the first rows of R and columns of Q of the weight's QR decomposition (Büyükakyüz 2024,
    2406.01775), which depend only on the weight's first columns."""
    b_OR = torch.linalg.qr(weight_OI[:, :rank]).Q
    return b_OR.T @ weight_OI, b_OR


def largest(weight_OI: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(u_OR, s_R, v_RI), the singular vectors of the largest values: for large weights by subspace iteration, which
    takes a hundredth of the time of the whole decomposition."""
    outputs, inputs = weight_OI.shape
    width = min(rank + EXTRA, outputs, inputs)
    if width * 4 > min(outputs, inputs):
        u_OK, s_K, v_KI = torch.linalg.svd(weight_OI, full_matrices=False)
        return u_OK[:, :rank], s_K[:rank], v_KI[:rank]
    drawn_IK = torch.randn(inputs, width, generator=generator).to(weight_OI)
    q_OK = torch.linalg.qr(weight_OI @ drawn_IK).Q
    for _ in range(ITERATIONS):
        q_OK = torch.linalg.qr(weight_OI @ torch.linalg.qr(weight_OI.T @ q_OK).Q).Q
    u_KK, s_K, v_KI = torch.linalg.svd(q_OK.T @ weight_OI, full_matrices=False)
    return (q_OK @ u_KK)[:, :rank], s_K[:rank], v_KI[:rank]


@contextmanager
def _alone(weight_OI: Tensor) -> Iterator[None]:
    """Within, one thread computes, unless the weight is large: two took 20 times as long for the widths of a model of
    135M parameters, because a decomposition is many small steps."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if weight_OI.numel() < LARGE else threads)
        yield
    finally:
        torch.set_num_threads(threads)
