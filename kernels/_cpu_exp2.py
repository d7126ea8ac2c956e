"""What the Numba loops of all operators share: 2^x that vectorises, and the bits of a float."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LARGEST_EXPONENT = np.float32(100)
# Beyond any weight that matters, and far from denormal numbers, which processors handle slowly.
SMALLEST_EXPONENT = np.float32(-64)
HALF = np.float32(0.5)
# 2^f on [-.5, .5], relative error 1.5e-7 in float32: minimax, then the best of the float32 neighbours.
E0, E1, E2, E3, E4, E5 = (np.float32(c) for c in (1.0, 0.693147, 0.24022245, 0.05550722, 0.009671353, 0.0013264851))

# Fast, but sums stay in the order in which they are written: where reordering would lose digits.
ordered = numba.njit(nogil=True, fastmath={"nnan", "ninf", "nsz", "arcp", "contract"}, error_model="numpy", cache=True)


@intrinsic
def float_from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 that an int32 holds the bits of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def bits_of_float(typing_context: Any, value: Any) -> Any:
    """The inverse of `float_from_bits`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@ordered
def exp2(x):
    """2^x of a float32 in [-64, 100]: polynomial for the fraction, exponent bits for the integer part."""
    x = min(max(x, SMALLEST_EXPONENT), LARGEST_EXPONENT)
    # Positive before the conversion, so that cutting off rounds to the nearest; a floor would cost more than all the
    # rest.
    shifted = np.int32(x - SMALLEST_EXPONENT + HALF)
    f = x - (np.float32(shifted) + SMALLEST_EXPONENT)
    power = ((((E5 * f + E4) * f + E3) * f + E2) * f + E1) * f + E0
    return power * float_from_bits((shifted + np.int32(127 - 64)) << np.int32(23))
