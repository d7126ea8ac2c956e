"""The fused operators of Upsample Anything on plain tensors; nothing here knows images, files or configurations.

One folder an operator, one module a backend in it; `geometry` holds what all share.
"""

# Hugging Face libraries look for a top-level module of this name and read its version: have one.
__version__ = "0.1.0"
