"""Exchangeable losses of the colour fit, one module each, found by name.

A module holds `loss(rendered, guide)`: the render of the LR image (by the plain weights) and what it should be, both
(B, G, H, W) in the units of `config.guide` (those of the image, [0, 1], with "identity"), to one loss per image, (B,).
It is minimised, so less is better; PyTorch must be able to differentiate it with respect to `rendered`; items of the
batch never mix. It should be a mean over pixels and channels and no sum, or the loss curves of two sizes cannot be
compared (Adam itself does not care for a factor).

Backends fit `l1` by loops of their own; every other one goes through autograd and takes a few times longer.
"""
