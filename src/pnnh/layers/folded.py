"""A stage folded without leaving its structure: norms and coder inside thin convolutions, the stream's tap applied.

Legend: f learner features [B, L, H, W]; c the stream [B, C, H, W]; every convolution has its bias.

    transition   f = act(learner * x),  c = act(stream * x)
    learn        f' = act(learner * c), c' = act(c + shift)
    deepen       f' = act(learner * f), c' = act(c + shift)
    write                               c' = act(c + write * f)
    both         f' = act(learner * c), c' = act(c + write * f)

Both operands of `c +` have crossed the same activations, so the net stays plain; it is no chain of single convolutions.
Against that chain (`pnnh.layers.fold`) it saves the zeros and the Diracs: 2 L C kernel entries a learn and write, not
2 (L + C) C. Source: ours.
"""

from __future__ import annotations

from torch import Tensor, nn


class FoldedTransition(nn.Module):
    """f = act(learner * x), c = act(stream * x)."""

    def __init__(self, learner: nn.Conv2d, stream: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.learner, self.stream, self.act = learner, stream, act

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.learner(x)), self.act(self.stream(x))


class FoldedLearn(nn.Module):
    """f' = act(learner * c), c' = act(c + shift); `shift` is a 1 x 1 convolution per channel, which runtimes fuse."""

    def __init__(self, learner: nn.Conv2d, shift: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.learner, self.shift, self.act = learner, shift, act

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.learner(c)), self.act(self.shift(c))


class FoldedDeepen(FoldedLearn):
    """f' = act(learner * f), c' = act(c + shift)."""

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.learner(f)), self.act(self.shift(c))


class FoldedWrite(nn.Module):
    """c' = act(c + write * f); f has been read and is handed on for nobody."""

    def __init__(self, write: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.write, self.act = write, act

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return f, self.act(c + self.write(f))


class FoldedPlainConv(nn.Module):
    """f' = act(learner * c), c' = act(c + write * f)."""

    def __init__(self, learner: nn.Conv2d, write: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.learner, self.write, self.act = learner, write, act

    def forward(self, f: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.act(self.learner(c)), self.act(c + self.write(f))


class FoldedStage(nn.Module):
    """x [B, in, H, W] -> c [B, C, H / stride, W / stride]."""

    def __init__(self, transition: FoldedTransition, layers: list[nn.Module]):
        super().__init__()
        self.transition = transition
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        f, c = self.transition(x)
        for layer in self.layers:
            f, c = layer(f, c)
        return c
