"""Arrays of a pass on the device that computes it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def placed(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor. A GPU is not waited for: it may still be computing what came before."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
