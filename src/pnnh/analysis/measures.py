"""Pure functions from tensors to numbers. Legend: N images, D features, B pictures, C channels, H x W pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(features: Tensor) -> Tensor:
    """[N, ...] -> inner products [N, N] in float64."""
    flat = features.flatten(1).double()
    return flat @ flat.T


def centred(k: Tensor) -> Tensor:
    """Gram [N, N] of the features less their mean; zeros where they differ by no more than single precision's rounding.

    Without this, CKA of images that are nearly the same to a layer would be a quotient of rounding errors.
    """
    inner = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    return inner * (inner.trace() > 1e-12 * k.trace())


def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """Unbiased HSIC of two Gram matrices [..., N, N], N >= 4 (Song et al. 2012, eq. 5). Blind to centring."""
    n = k.shape[-1]
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, l = k * off, l * off  # noqa: E741
    trace, rows_k, rows_l = (k * l).sum((-2, -1)), k.sum(-1), l.sum(-1)
    total = rows_k.sum(-1) * rows_l.sum(-1) / ((n - 1) * (n - 2))
    return (trace + total - 2 / (n - 2) * (rows_k * rows_l).sum(-1)) / (n * (n - 3))


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of features [N, ...] of the same images, unbiased (Kornblith 2019, Nguyen 2021)."""
    k, l = gram(x), gram(y)  # noqa: E741
    return (hsic(k, l) / (hsic(k, k) * hsic(l, l)).clamp(min=0).sqrt()).item()


def cosines(k: Tensor) -> Tensor:
    """Gram [N, N] -> cosine of every pair i < j, [N (N - 1) / 2]; NaN where a row is zero."""
    norm = k.diagonal().sqrt()
    i, j = torch.triu_indices(len(k), len(k), 1, device=k.device)
    return (k[i, j] / (norm[i] * norm[j])).clamp(-1, 1)


def effective_rank(covariance: Tensor) -> float:
    """exp(entropy of the normalised eigenvalues) (Roy and Vetterli 2007): 1 for a line, D for a ball, 0 for a point."""
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    if values.sum() <= 0:
        return 0.0
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def psnr(mean_square_error: float, value_range: float) -> float:
    """Peak signal to noise ratio in dB."""
    return 10 * torch.tensor(value_range**2 / max(mean_square_error, 1e-20)).log10().item()


def ssim(x: Tensor, y: Tensor, value_range: float) -> Tensor:
    """Structural similarity [B] of pictures [B, C, H, W]: 11 x 11 Gaussian window of 1.5 pixels (Wang et al. 2004).

    Pictures smaller than the window are compared in a window of their own size.
    """
    size = min(11, x.shape[-2], x.shape[-1])
    place = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    bell = torch.exp(-(place**2) / (2 * 1.5**2))
    bell = (bell / bell.sum())[None, None]

    def local(picture: Tensor) -> Tensor:
        rows = torch.conv2d(picture.flatten(0, 1)[:, None], bell[:, :, None])
        return torch.conv2d(rows, bell[:, :, :, None])[:, 0].unflatten(0, x.shape[:2])

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    small, other = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    luminance = (2 * mean_x * mean_y + small) / (mean_x**2 + mean_y**2 + small)
    return (luminance * (2 * covariance + other) / (var_x + var_y + other)).mean((1, 2, 3))
