"""Gaussians adapted to an LR signal: steps of Adam by which every cell is best predicted from the others around it.

`reference` is the definition of truth, `torch` the portable backend, `cpu` the fused Numba one, `triton` the fused GPU
one. Each module has `refuses` and `fit`, with the same contracts; a new backend is a new module. All of it happens on
the LR grid.
"""

BETA_1, BETA_2 = 0.9, 0.999  # of Adam (Kingma & Ba 2015), as usual
RATE, EPSILON = 0.1, 1e-3  # of Adam; a gradient that is rounding (a cell's is some .1) moves nothing
PRIOR = 0.1  # weight of the mean squared change of the logarithms of the sigmas
ROUNDING = 1e-4  # of the absolute error at zero, squared units of the values
