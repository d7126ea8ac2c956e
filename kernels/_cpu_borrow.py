"""What the Numba loops of all operators share: arrays without counts of references, arguments that share no memory.

Numba's cache does not see this file: who changes it must change the loops that use it, too, or clear the cache.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def borrow(typing_context: Any, array: Any) -> Any:
    """The same array without its reference count.

    Numba counts references with atomic instructions, several in every call; threads that share an array would spend
    more time on its counter than on the arithmetic. The caller of a compiled function keeps its arguments alive anyway.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(signature.args[0])(context, builder, value=arguments[0])
        struct.meminfo = cgutils.get_null_value(struct.meminfo.type)
        struct.parent = cgutils.get_null_value(struct.parent.type)
        return struct._getvalue()

    return array(array), generate


@intrinsic
def apart(typing_context: Any) -> Any:
    """Says of the arguments of the function that calls this what `restrict` says in C: what one of them is used to
    write, no other one is used to read or write there. (Another may hold the same memory if it is not used there.) They
    must be borrowed, since references of one array are counted at one place.

    Otherwise LLVM compares before a loop where its arrays begin and end, which for a row of 224 pixels in ten arrays
    takes a fifth of the time.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for argument in builder.function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.void(), generate
