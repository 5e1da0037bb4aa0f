"""Losses of preference pairs, as functions of log-probabilities. No model, no tokens.

All are minimised, and divided by the number of pairs. Axes: P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Options:
    """``beta``: how strongly the difference counts; ``label_smoothing``: the probability that a preference is the wrong
    way round; ``gamma_beta_ratio``: the margin to reach, over beta."""

    beta: float
    label_smoothing: float = 0.0
    gamma_beta_ratio: float = 0.0


@dataclass(frozen=True)
class Answers:
    """One side of the pairs. ``logp_P``: log-probability of the answer's tokens, its end included, summed;
    ``reference_P``: the same under the model as it was before training; ``tokens_P``: their number."""

    logp_P: Tensor
    reference_P: Tensor
    tokens_P: Tensor

    @property
    def ratio_P(self) -> Tensor:
        """log of the answer's probability over that under the reference."""
        return self.logp_P - self.reference_P

    @property
    def mean_P(self) -> Tensor:
        """Log-probability per token."""
        return self.logp_P / self.tokens_P


Function = Callable[[Answers, Answers, Options], Tensor]


@dataclass(frozen=True)
class PairLoss:
    """``function``: (chosen, rejected, options) -> loss_P. ``beta``: the value of train.beta=auto. ``start``: the loss
    of every pair where the model is the reference, given beta; None if the loss has no reference. ``nll``: the weight
    of the chosen answer's negative log-likelihood per token, where it is part of the method."""

    function: Function
    beta: float
    start: Callable[[float], float] | None
    nll: float = 0.0


def _margin(chosen: Answers, rejected: Answers, beta: float) -> Tensor:
    return beta * (chosen.ratio_P - rejected.ratio_P)


def _smoothed(margin_P: Tensor, e: float) -> Tensor:
    return -(1 - e) * F.logsigmoid(margin_P) - e * F.logsigmoid(-margin_P)


def dpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Rafailov et al. 2023, 2305.18290; with label smoothing, conservative DPO (Mitchell 2023)."""
    return _smoothed(_margin(chosen, rejected, o.beta), o.label_smoothing)


def robust_dpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Unbiased under preferences of which a known fraction is the wrong way round (Chowdhury et al. 2024,
    2403.00409)."""
    margin_P, e = _margin(chosen, rejected, o.beta), o.label_smoothing
    return (-(1 - e) * F.logsigmoid(margin_P) + e * F.logsigmoid(-margin_P)) / (1 - 2 * e)


def hinge(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Of SLiC-HF (Zhao et al. 2023, 2305.10425), on the ratios to the reference."""
    return torch.relu(1 - _margin(chosen, rejected, o.beta))


def ipo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Azar et al. 2023, 2310.12036; on log-ratios per token, as its authors do it."""
    gap_P = chosen.ratio_P / chosen.tokens_P - rejected.ratio_P / rejected.tokens_P
    return (gap_P - 1 / (2 * o.beta)).square()


def normalized_dpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """DPO on log-ratios per token (Lambert et al. 2024, 2411.15124)."""
    gap_P = chosen.ratio_P / chosen.tokens_P - rejected.ratio_P / rejected.tokens_P
    return _smoothed(o.beta * gap_P, o.label_smoothing)


def apo_zero(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Raises the chosen answer's probability and lowers the rejected one's, each by itself (D'Oosterlinck et al. 2024,
    2408.06266)."""
    return torch.sigmoid(-o.beta * chosen.ratio_P) + torch.sigmoid(o.beta * rejected.ratio_P)


def simpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Meng et al. 2024, 2405.14734."""
    margin_P = o.beta * (chosen.mean_P - rejected.mean_P - o.gamma_beta_ratio)
    return -F.logsigmoid(margin_P)


def orpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """The odds-ratio part (Hong et al. 2024, 2403.07691); the likelihood part is the method's ``nll``."""
    return -o.beta * F.logsigmoid(log_odds(chosen.mean_P) - log_odds(rejected.mean_P))


def log_odds(logp_P: Tensor) -> Tensor:
    """log(p / (1 - p)), precise at both ends (Maechler 2012, "Accurately computing log(1 - exp(-|a|))")."""
    # Both branches are computed, and where one is not used, its gradient must still be finite.
    near_P = torch.where(logp_P > -math.log(2), logp_P, -math.log(2)).clamp(max=-torch.finfo(logp_P.dtype).tiny)
    far_P = torch.where(logp_P > -math.log(2), -math.log(2), logp_P)
    rest_P = torch.where(logp_P > -math.log(2), torch.log(-torch.expm1(near_P)), torch.log1p(-torch.exp(far_P)))
    return logp_P - rest_P


LOSSES = {
    "dpo": PairLoss(dpo, 0.1, lambda beta: math.log(2)),
    "robust_dpo": PairLoss(robust_dpo, 0.1, lambda beta: math.log(2)),
    "normalized_dpo": PairLoss(normalized_dpo, 5.0, lambda beta: math.log(2)),
    "hinge": PairLoss(hinge, 0.1, lambda beta: 1.0),
    "ipo": PairLoss(ipo, 0.1, lambda beta: 1 / (4 * beta**2)),
    "apo_zero": PairLoss(apo_zero, 0.1, lambda beta: 1.0),
    "simpo": PairLoss(simpo, 2.0, None),
    "orpo": PairLoss(orpo, 0.1, None, nll=1.0),
}
