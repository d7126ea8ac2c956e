"""What the Numba loops of all operators share: arrays whose references nobody counts."""

from __future__ import annotations

from typing import Any

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
