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
    """``beta``: inverse temperature of the implicit reward; ``label_smoothing``: the probability that a preference is
    flipped; ``gamma_beta_ratio``: the target margin, as a ratio to beta."""

    beta: float
    label_smoothing: float = 0.0
    gamma_beta_ratio: float = 0.0


@dataclass(frozen=True)
class Answers:
    """One side of the pairs. ``logp_P``: log-probability of the answer's tokens, its end included, summed;
    ``reference_P``: the same under the reference, the model before training; ``tokens_P``: their number."""

    logp_P: Tensor
    reference_P: Tensor
    tokens_P: Tensor

    @property
    def logratio_P(self) -> Tensor:
        """log of the answer's probability over that under the reference."""
        return self.logp_P - self.reference_P

    @property
    def mean_logratio_P(self) -> Tensor:
        """The same per token."""
        return self.logratio_P / self.tokens_P

    @property
    def mean_logp_P(self) -> Tensor:
        """Log-probability per token."""
        return self.logp_P / self.tokens_P


Function = Callable[[Answers, Answers, Options], Tensor]


@dataclass(frozen=True)
class PairLoss:
    """``function``: (chosen, rejected, options) -> loss_P. ``beta``: the value of train.beta=auto.
    ``loss_at_reference``: the loss of every pair where policy and reference are equal, given beta. ``reference``:
    whether it has one; ``per_token``: whether it compares means over tokens, and not sums. ``nll``: the weight of the
    chosen answer's negative log-likelihood per token, where it is part of the method."""

    function: Function
    beta: float
    loss_at_reference: Callable[[float], float] | None
    reference: bool = True
    per_token: bool = False
    nll: float = 0.0

    def reward(self, answers: Answers, beta: float) -> Tensor:
        """The implicit reward of answers, which the loss compares."""
        if self.reference:
            return beta * (answers.mean_logratio_P if self.per_token else answers.logratio_P)
        return beta * answers.mean_logp_P


def _margin(chosen: Answers, rejected: Answers, beta: float) -> Tensor:
    return beta * (chosen.logratio_P - rejected.logratio_P)


def _smoothed(margin_P: Tensor, e: float) -> Tensor:
    return -(1 - e) * F.logsigmoid(margin_P) - e * F.logsigmoid(-margin_P)


def dpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Rafailov et al. 2023, 2305.18290; with label smoothing, conservative DPO (Mitchell 2023)."""
    return _smoothed(_margin(chosen, rejected, o.beta), o.label_smoothing)


def robust_dpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Unbiased if a known fraction of the preferences is flipped (Chowdhury et al. 2024, 2403.00409)."""
    margin_P, e = _margin(chosen, rejected, o.beta), o.label_smoothing
    return (-(1 - e) * F.logsigmoid(margin_P) + e * F.logsigmoid(-margin_P)) / (1 - 2 * e)


def hinge(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Liu et al. 2023, 2309.06657 (RSO): the hinge of SLiC (Zhao et al. 2023, 2305.10425) on the ratios to the
    reference."""
    return torch.relu(1 - _margin(chosen, rejected, o.beta))


def ipo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Azar et al. 2023, 2310.12036; on log-ratios per token, as its authors do it."""
    return (chosen.mean_logratio_P - rejected.mean_logratio_P - 1 / (2 * o.beta)).square()


def normalized_dpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """DPO on log-ratios per token (Lambert et al. 2024, 2411.15124)."""
    return _smoothed(o.beta * (chosen.mean_logratio_P - rejected.mean_logratio_P), o.label_smoothing)


def apo_zero(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Raises the chosen answer's probability and lowers the rejected one's, each by itself (D'Oosterlinck et al. 2024,
    2408.06266)."""
    return torch.sigmoid(-o.beta * chosen.logratio_P) + torch.sigmoid(o.beta * rejected.logratio_P)


def simpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """Meng et al. 2024, 2405.14734."""
    margin_P = o.beta * (chosen.mean_logp_P - rejected.mean_logp_P - o.gamma_beta_ratio)
    return -F.logsigmoid(margin_P)


def orpo(chosen: Answers, rejected: Answers, o: Options) -> Tensor:
    """The odds-ratio part (Hong et al. 2024, 2403.07691); the likelihood part is the method's ``nll``."""
    return -o.beta * F.logsigmoid(log_odds(chosen.mean_logp_P) - log_odds(rejected.mean_logp_P))


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
    "normalized_dpo": PairLoss(normalized_dpo, 5.0, lambda beta: math.log(2), per_token=True),
    "hinge": PairLoss(hinge, 0.1, lambda beta: 1.0),
    "ipo": PairLoss(ipo, 0.1, lambda beta: 1 / (4 * beta**2), per_token=True),
    "apo_zero": PairLoss(apo_zero, 0.1, lambda beta: 1.0),
    "simpo": PairLoss(simpo, 2.0, None, reference=False, per_token=True),
    "orpo": PairLoss(orpo, 0.1, None, reference=False, per_token=True, nll=1.0),
}
