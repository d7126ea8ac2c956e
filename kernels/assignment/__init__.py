"""Assignment of pixels to classes such that cells keep their shares: what averages of labels are refined by.

`reference` is the definition of truth, `torch` the portable backend, `cpu` the fused Numba one. Each module has
`refuses` and `assign`, with the same contracts; a new backend is a new module.
"""

SHARPNESS = 3  # the power that turns scores into odds
LEAST_SHARE = 1e-6  # with no more a class is absent from a cell
LEAST_SCORE = 0.01  # no score counts as less: what a render is sure of can still be moved, and gradients stay bounded
