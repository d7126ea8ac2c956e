"""What the Triton kernels of all operators share: cosine and sine of a turn, without the memory that tl.cos needs."""

# Annotations are evaluated: Triton reads tl.constexpr from them.
import triton
import triton.language as tl

# Globals that kernels read must be constexpr; write them last in a product, as Triton's interpreter needs.
PI = tl.constexpr(3.141592653589793)


@triton.jit
def cos_and_sin(t):
    """cos(pi t) and sin(pi t), of t up to some thousands.

    tl.cos reduces angles of any size, for which it needs memory. Polynomials on [-pi / 4, pi / 4] as in Cephes (S. L.
    Moshier), relative error 1e-7.
    """
    quarter = tl.floor(2 * t + 0.5)
    x = (t - quarter / 2) * PI
    z = x * x
    sine = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    cosine = 1 - z / 2 + z * z * (4.166664568e-2 + z * (-1.388731625e-3 + z * 2.443315712e-5))
    quadrant = quarter.to(tl.int32) & 3
    swapped = quadrant % 2 == 1
    cos, sin = tl.where(swapped, sine, cosine), tl.where(swapped, cosine, sine)
    cos = tl.where((quadrant == 1) | (quadrant == 2), -cos, cos)
    sin = tl.where(quadrant >= 2, -sin, sin)
    return cos, sin
