"""Exchangeable spaces in which guide colours are compared, one module each, found by name.

A module holds `transform(image: Tensor) -> Tensor`, from (B, G, H, W) in [0, 1] to (B, G', H, W) in any units; the
range sigma is in those units.
"""
