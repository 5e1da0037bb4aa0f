"""Losses of sampled answers, as functions of log-probabilities and advantages; and the advantages. No model, no tokens.

All are minimised, and divided by the sum of their weights over the whole step. Axes: S samples, M tokens of all of
them, N prompts, G samples of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
STD_EPSILON = 1e-4  # as in the released code of GRPO, and in TRL and verl


@dataclass(frozen=True)
class Samples:
    """``logp_M`` of the tokens of the samples, one sample after another, their ends included; ``old_M``: the same when
    they were drawn; ``tokens``: of each sample; ``advantage_S``; ``reference_M``: as ``logp_M``, by the model before
    training; ``weight_M``: of a token, where another program drew it, with other rounding."""

    logp_M: Tensor
    old_M: Tensor
    tokens: tuple[int, ...]
    advantage_S: Tensor
    reference_M: Tensor | None = None
    weight_M: Tensor | None = None

    @property
    def logratio_M(self) -> Tensor:
        return self.logp_M - self.old_M

    def summed(self, value_M: Tensor) -> Tensor:
        """value_S: over the tokens of each sample."""
        return torch.stack([part.sum() for part in torch.split(value_M, list(self.tokens))])

    @property
    def tokens_S(self) -> Tensor:
        return torch.tensor(self.tokens, dtype=self.logp_M.dtype, device=self.logp_M.device)

    def repeated(self, value_S: Tensor) -> Tensor:
        """value_M: that of its sample, for each token."""
        return torch.repeat_interleave(value_S, torch.tensor(self.tokens, device=value_S.device))


Clip = tuple[float, float]  # how far below and above 1 a ratio gains anything
CLIP, DAPO_CLIP, GSPO_CLIP = (0.2, 0.2), (0.2, 0.28), (3e-4, 4e-4)


@dataclass(frozen=True)
class PolicyLoss:
    """``function``: Samples -> loss_S. ``advantages``: rewards_NG -> advantage_NG. ``weight``: what a sample adds to
    the divisor, given its tokens and the longest that an answer may have. ``ratio``: Samples -> ratio_M, that of its
    token or of its sample, which is clipped at ``clip``. ``penalty``: Samples -> KL_S from the reference."""

    function: Callable[[Samples], Tensor]
    advantages: Callable[[Floats], Floats]
    weight: Callable[[int, int], float]
    ratio: Callable[[Samples], Tensor]
    clip: Clip
    penalty: Callable[[Samples], Tensor] | None

    def clips(self, samples: Samples) -> Tensor:
        """M: whether a token has no gradient because its ratio is clipped."""
        ratio_M, advantage_M = self.ratio(samples).detach(), samples.repeated(samples.advantage_S)
        low, high = self.clip
        return ((ratio_M < 1 - low) & (advantage_M < 0)) | ((ratio_M > 1 + high) & (advantage_M > 0))


def clipped(ratio: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """The surrogate of PPO (Schulman et al. 2017, 1707.06347), negative: whichever of the ratio and the clipped ratio
    gains less."""
    low, high = clip
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def of_token(samples: Samples) -> Tensor:
    """ratio_M, each token's own."""
    return samples.logratio_M.exp()


def of_sample(samples: Samples) -> Tensor:
    """ratio_M of the sum over its sample."""
    return samples.repeated(samples.summed(samples.logratio_M).exp())


def of_mean(samples: Samples) -> Tensor:
    """ratio_M of the mean over its sample."""
    return samples.repeated((samples.summed(samples.logratio_M) / samples.tokens_S).exp())


def _by_token(samples: Samples, clip: Clip) -> Tensor:
    """loss_S, summed over tokens."""
    loss_M = clipped(of_token(samples), samples.repeated(samples.advantage_S), clip)
    return samples.summed(loss_M if samples.weight_M is None else loss_M * samples.weight_M)


def grpo(samples: Samples) -> Tensor:
    """GRPO (Shao et al. 2024, 2402.03300): the mean over the tokens of each sample."""
    return _by_token(samples, CLIP) / samples.tokens_S


def dr_grpo(samples: Samples) -> Tensor:
    """Dr. GRPO (Liu et al. 2025, 2503.20783): the sum over tokens, so that long wrong answers are not spared."""
    return _by_token(samples, CLIP)


def dapo(samples: Samples) -> Tensor:
    """DAPO (Yu et al. 2025, 2503.14476): the sum over tokens, divided by those of the step; a wider clip above."""
    return _by_token(samples, DAPO_CLIP)


def gspo(samples: Samples) -> Tensor:
    """GSPO (Zheng et al. 2025, 2507.18071): one ratio for each sample, of the mean over its tokens."""
    ratio_S = (samples.summed(samples.logratio_M) / samples.tokens_S).exp()
    loss_S = clipped(ratio_S, samples.advantage_S, GSPO_CLIP)
    return loss_S if samples.weight_M is None else loss_S * samples.summed(samples.weight_M) / samples.tokens_S


def rloo(samples: Samples) -> Tensor:
    """REINFORCE, leave one out (Ahmadian et al. 2024, 2402.14740): one ratio for each sample, of the sum."""
    assert samples.weight_M is None, "CONFIG_CONFLICT"
    return clipped(samples.summed(samples.logratio_M).exp(), samples.advantage_S, CLIP)


# -- the divergence from the reference


def k3(samples: Samples) -> Tensor:
    """KL_M from the reference, estimated from the token that was drawn: never negative, and unbiased (Schulman 2020; in
    GRPO, 2402.03300)."""
    assert samples.reference_M is not None
    delta_M = samples.reference_M - samples.logp_M
    return delta_M.exp() - delta_M - 1


def _mean_k3(ratio: Callable[[Samples], Tensor]) -> Callable[[Samples], Tensor]:
    return lambda samples: samples.summed(ratio(samples) * k3(samples)) / samples.tokens_S


def _sum_k3(samples: Samples) -> Tensor:
    """Times the ratio, as in DeepSeek-V3.2 (2512.02556): without it, the gradient would be that of the KL of the
    reference from the policy, not of the policy from the reference."""
    return samples.summed(of_token(samples) * k3(samples))


# -- advantages, in float64: in float32, equal rewards have a deviation that is not quite 0 (verl 4597)


def centred(rewards_NG: Floats) -> Floats:
    """Reward minus the mean of its group. Samples without a reward (NaN) have advantage 0 and are in no mean; so have
    groups in which fewer than two have one, or in which all are equal."""
    return _advantages(rewards_NG, lambda own: own - own.mean())


def scaled(rewards_NG: Floats) -> Floats:
    """`centred`, over the group's standard deviation (of a sample, n - 1)."""
    return _advantages(rewards_NG, lambda own: (own - own.mean()) / (own.std(ddof=1) + STD_EPSILON))


def leave_one_out(rewards_NG: Floats) -> Floats:
    """Reward minus the mean of the others of its group; otherwise as `centred`."""
    return _advantages(rewards_NG, lambda own: (own - own.mean()) * len(own) / (len(own) - 1))


def best(rewards_NG: Floats) -> Floats:
    """1 for the first of the samples with the highest reward of a group, unless all are equal; else 0: supervised
    fine-tuning on the best of them (RAFT, Dong et al. 2023, 2304.06767)."""
    return _advantages(rewards_NG, lambda own: (np.arange(len(own)) == own.argmax()).astype(np.float64))


def _advantages(rewards_NG: Floats, of_group: Callable[[Floats], Floats]) -> Floats:
    advantage_NG = np.zeros(rewards_NG.shape, np.float64)
    for n, group_G in enumerate(np.asarray(rewards_NG, np.float64)):
        scored_G = ~np.isnan(group_G)
        own = group_G[scored_G]
        if len(own) >= 2 and own.max() != own.min():
            advantage_NG[n, scored_G] = of_group(own)
    return advantage_NG


def _one(tokens: int, longest: int) -> float:
    return 1.0


LOSSES: dict[str, PolicyLoss] = {
    "grpo": PolicyLoss(grpo, scaled, _one, of_token, CLIP, _mean_k3(of_token)),
    "dr_grpo": PolicyLoss(dr_grpo, centred, lambda tokens, longest: float(longest), of_token, CLIP, _sum_k3),
    "dapo": PolicyLoss(dapo, scaled, lambda tokens, longest: float(tokens), of_token, DAPO_CLIP, _sum_k3),
    "gspo": PolicyLoss(gspo, scaled, _one, of_mean, GSPO_CLIP, _mean_k3(of_mean)),
    "rloo": PolicyLoss(rloo, leave_one_out, _one, of_sample, CLIP, None),
    "raft": PolicyLoss(grpo, best, _one, of_token, CLIP, _mean_k3(of_token)),
}
