"""One small model of every kind that people train. Each maps inputs [B, 8] to scores [B, 3], unless it says otherwise.

Nobody here tunes anything: what matters is what a layer keeps between batches, and where its numbers come from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def images(channels: int = 2) -> nn.Module:
    return nn.Unflatten(1, (channels, 2, 8 // channels // 2))


def two_norms(norm, dims: int) -> nn.Module:
    """Two normalizations in a row, as in every residual network."""
    shape = {1: (4, 2), 2: (2, 2, 2), 3: (1, 2, 2, 2)}[dims]
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return seq(nn.Unflatten(1, shape), conv(shape[0], 4, 1), norm(4), nn.ReLU(), conv(4, 4, 1), norm(4),
               nn.Flatten(), nn.LazyLinear(3))  # fmt: skip


def shaped(model: nn.Module) -> nn.Module:
    """A lazy model after its first batch, as `model()` must return it."""
    model(torch.ones(2, 8))
    return model


class Recurrent(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.cell, self.out = kind(2, 6, num_layers=2, batch_first=True, dropout=0.2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x.view(-1, 4, 2))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x.view(-1, 2, 4)).mean(1))


class Words(nn.Module):
    """Embeddings, looked up by numbers made of the inputs."""

    def __init__(self, kind, **how) -> None:
        super().__init__()
        self.table, self.out = kind(20, 4, **how), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.table((x.abs() * 7).long() % 20)
        return self.out(found if found.dim() == 2 else found.mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.decode.weight = self.encode.weight
        self.again, self.out = self.norm, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.again(self.decode(self.norm(self.encode(x)))))


class Branch(nn.Module):
    """Has a layer that no batch uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Sometimes(nn.Module):
    """One of two layers, as the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.left if float(x.detach().sum()) > 0 else self.right)(x)


class Buffers(nn.Module):
    """Integers, booleans, scalars, nothing at all: updated in place, replaced, or never changed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("odd", torch.tensor(False))
        self.register_buffer("seen", torch.zeros(8, dtype=torch.int32))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("passing", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x * self.scale)
        if self.training:
            self.calls += 1
            self.odd = ~self.odd
            self.seen = self.seen + (x > 0).sum(0).to(torch.int32)
            self.mean.lerp_(x.detach().mean(), 0.1)
            self.passing.add_(1)
        return out * (1 + 0 * self.mean)


class Cache(nn.Module):
    """Makes a table in its first forward and keeps it, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out, self.table = nn.Linear(8, 8), nn.Linear(8, 3), None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.cos(torch.arange(8.0))
        return self.out(self.inner(x) * self.table)


class Twice(nn.Module):
    """One trunk, applied to two views of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.out = seq(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.trunk(x) + self.trunk(x.flip(1)))


class Derivative(nn.Module):
    """Its output is a derivative of itself, as forces are of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.out = seq(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return self.out(force)


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tiny, self.out = nn.ParameterList(nn.Parameter(torch.zeros(3)) for _ in range(4000)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) + torch.stack(list(self.tiny)).sum(0)


class Teacher(nn.Module):
    """A teacher that follows its student: frozen, and changed in forward. Its recipe says changing=["teacher"]."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(8, 3), nn.Linear(8, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            for theirs, mine in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                theirs.data.lerp_(mine.data, 0.1)
        return self.student(x) + self.teacher(x)


class Renormed(nn.Module):
    """Keeps its weight in a ball by itself, in forward. Without ps tasks only: they own the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data = torch.renorm(self.layer.weight.data, p=2, dim=0, maxnorm=0.3)
        return self.layer(x)


def frozen_layers() -> nn.Module:
    """Fine-tuning: the first layers neither train nor count their batches."""
    model = seq(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False).eval()
    return model


def of_dtype(dtype: torch.dtype) -> nn.Module:
    inside = seq(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    return seq(Lambda(lambda x: x.to(dtype)), inside, Lambda(lambda x: x if dtype == torch.float64 else x.float()))


MODELS = {
    "batchnorm1d": lambda: shaped(two_norms(nn.BatchNorm1d, 1)),
    "batchnorm2d": lambda: shaped(two_norms(nn.BatchNorm2d, 2)),
    "batchnorm3d": lambda: shaped(two_norms(nn.BatchNorm3d, 3)),
    "batchnorm without statistics": lambda: shaped(
        two_norms(lambda n: nn.BatchNorm2d(n, track_running_stats=False), 2)
    ),
    "cumulative batchnorm": lambda: shaped(two_norms(lambda n: nn.BatchNorm2d(n, momentum=None), 2)),
    "lazy batchnorm": lambda: shaped(two_norms(lambda n: nn.LazyBatchNorm2d(), 2)),
    "groupnorm": lambda: shaped(two_norms(lambda n: nn.GroupNorm(2, n), 2)),
    "instancenorm": lambda: shaped(
        two_norms(lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True), 2)
    ),
    "layernorm": lambda: seq(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
    "spectral norm": lambda: seq(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 3)),
    "old spectral norm": lambda: seq(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 3)),
    "weight norm": lambda: seq(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 3)),
    "orthogonal": lambda: seq(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 3)),
    "pruned": lambda: seq(prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5), nn.Linear(8, 3)),
    "dropout": lambda: seq(nn.Linear(8, 8), nn.Dropout(0.3), nn.AlphaDropout(0.1), nn.RReLU(), nn.Linear(8, 3)),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "transformer": Transformer,
    "embedding": lambda: Words(nn.Embedding, padding_idx=0),
    "sparse embedding": lambda: Words(nn.Embedding, sparse=True),
    "embedding bag": lambda: Words(nn.EmbeddingBag, mode="mean"),
    "tied weights": Tied,
    "frozen layers": frozen_layers,
    "unused branch": Branch,
    "branch of the batch": Sometimes,
    "buffers": Buffers,
    "cache": Cache,
    "module used twice": Twice,
    "derivative": Derivative,
    "4000 parameters": Many,
    "teacher": Teacher,
    "float64": lambda: of_dtype(torch.float64),
    "bfloat16": lambda: of_dtype(torch.bfloat16),
    "channels last": lambda: shaped(
        seq(images(), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    ).to(memory_format=torch.channels_last),
    "compiled": lambda: torch.compile(seq(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), backend="eager"),
    "renormed": Renormed,
}  # fmt: skip
