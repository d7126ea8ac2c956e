"""Exchangeable ways to clean an image before it becomes the guide, one module each, found by name.

A module holds `apply(image: Tensor) -> Tensor`, from (B, G, H, W) in [0, 1] to the same shape and range, on any device;
items of the batch never mix. The signal has no part in this.

`auto` leaves a clean image as it is, bit for bit, and removes impulses, darkness and noise where it finds them;
`median` (3 x 3) and `denoise` act on every image; `none` on none.
"""
