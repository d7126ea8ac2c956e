"""Anisotropic diffusion along the guide that keeps the averages of the LR signal: what a render is refined by.

`reference` is the definition of truth, `torch` the portable backend, `cpu` the fused Numba one, `triton` the fused GPU
one. Each module has `refuses` and `diffuse`, with the same contracts; a new backend is a new module.
"""
