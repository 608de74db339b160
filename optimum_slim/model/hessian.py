"""The curvature of a linear's squared error, by which columns of its weight make up for one another (Optimal Brain
Compression, arXiv:2208.11580; solved by a Cholesky factor in GPTQ, arXiv:2210.17323, and SparseGPT)."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_root(weight: Tensor, hessian: Tensor, damp: float) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse, float32 [K, K]. Both arguments are changed: weights
    of inputs that are always 0 become 0.

    Args:
        weight: float32 [N, K]. hessian: a multiple of X^T X, float32 [K, K]. damp: share of the mean diagonal that is
        added to the diagonal.

    Raises:
        torch.linalg.LinAlgError: the hessian is not that of any inputs.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    diagonal += damp * hessian.diag().mean()  # of a copy in one piece: summed in the order of the published code
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
