"""The coefficients of every step, forwards and of the transpose: what the fused backends step by.

`kernels.diffusion.reference.diffuse` is x_{k+1} = M (x_k + m_k (x_k - x_{k-1}) - a_k rate L x_k) + b, with
M = I - share U valid A, b = share U valid signal, a_k = (4 k + 2) / (2 k + 3) and m_k = a_k - 1. M and L are symmetric:
backwards, with g_k = d loss / d x_k and h_k = M g_k,

    g_k = (1 + m_k) h_{k+1} - m_{k+1} h_{k+2} - a_k rate L h_{k+1},

where h beyond the last step is 0: again one of these steps, then M. The start is x_0 and x_{-1}, so that its gradient
takes 1 in place of 1 + m_0. d loss / d b is the sum of all g_k but that one, of which only averages are needed.
"""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """keep x + momentum (x - previous x) - rate L x."""

    keep: float
    momentum: float
    rate: float


def forwards(steps: int, rate: float) -> list[Step]:
    """One cycle of so many steps; `rate` is that of the reference. Before the start nothing moved."""
    return [Step(1.0, _speed(k) - 1 if k else 0.0, _speed(k) * rate) for k in range(steps)]


def backwards(steps: int, rate: float) -> list[Step]:
    """The steps of the transpose, from the last iterate to the start."""
    momenta = [_speed(k) - 1 for k in range(steps)]
    after = [*momenta[1:], 0.0]
    own = [0.0, *momenta[1:]]
    return [Step(1 + own[k] - after[k], after[k], _speed(k) * rate) for k in reversed(range(steps))]


def _speed(k: int) -> float:
    """Hafner et al. 2016, equation of the fast semi-iterative scheme: 2/3, 6/5, 10/7, ... to 2."""
    return (4 * k + 2) / (2 * k + 3)
