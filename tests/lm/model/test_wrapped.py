"""Linear maps that another library has put its own around are read as what they compute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm.model.components import Linear, matrix_of, rows_of


class Wrapped(nn.Module):
    """A map with a low-rank adapter around it, as peft makes one."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.base, self.in_features = base, base.in_features
        self.down = nn.Linear(base.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, base.out_features, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + self.up(self.down(x))


def maps(bias: bool) -> tuple[Wrapped, Linear]:
    """A wrapped map, and the plain one that it equals."""
    torch.manual_seed(0)
    wrapped = Wrapped(Linear(5, 7, bias=bias, dtype=torch.float64))
    plain = Linear(5, 7, bias=bias, dtype=torch.float64)
    plain.load_state_dict(wrapped.base.state_dict())
    with torch.no_grad():
        plain.weight += wrapped.up.weight @ wrapped.down.weight
    return wrapped, plain


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_rows_of_a_wrapped_map(bias: bool, constant: bool) -> None:
    wrapped, plain = maps(bias)
    inputs = [torch.randn(2, n, 5, dtype=torch.float64, requires_grad=True) for n in (1, 3)]
    gradients = []
    for linear in (wrapped, plain):
        made = rows_of(linear, inputs, 3, constant)
        assert [x.shape for x in made] == [(2, 1, 4), (2, 3, 4)]
        gradients.append(torch.autograd.grad(sum(x.square().sum() for x in made), inputs))
        made = rows_of(linear, inputs, 3, constant)
        sum(x.sum() for x in made).backward()
        assert all((p.grad is None) == constant for p in linear.parameters())
    pairs = zip(rows_of(wrapped, inputs, 3), rows_of(plain, inputs, 3), strict=True)
    for one, other in [*pairs, *zip(*gradients, strict=True)]:
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(rows_of(plain, inputs, 3)[1], plain(inputs[1])[..., 3:])


def test_the_matrix_of_a_wrapped_map() -> None:
    wrapped, plain = maps(bias=False)
    torch.testing.assert_close(matrix_of(wrapped), plain.weight)
    assert matrix_of(plain) is plain.weight
