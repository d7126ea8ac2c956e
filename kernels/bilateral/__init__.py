"""The bilateral Gaussian render, its gradients and the reconstruction loss of the fit.

`reference` is the definition of truth, `torch` the portable backend, `cpu` the fused Numba one. Each module has
`refuses`, `render` and `reconstruction_l1`, with the same contracts; a new backend is a new module, and may leave out
the last, which is the render and its error in one pass.
"""
