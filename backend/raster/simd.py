"""Eight pixels as one value inside numba kernels, so that short spans keep the processor's vector units busy.

LLVM's loop vectoriser leaves runs of five or six pixels to scalar code: it has to check for overlapping arrays first.
Here a kernel says `load`, `store`, `select` and plain arithmetic on `Lanes`, which become LLVM vector instructions;
LLVM splits them as the processor needs (AVX: one register of eight float32; SSE and NEON: two of four).

Everything works on float32 and float64 alike. A scalar on either side of an operator stands for eight equal ones of
the lanes' own type, so that plain Python constants can be written.

numba's cache on disk looks at the file of a cached kernel only: whoever changes this one touches `tiles` as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 8
# As `fastmath` in the kernels: no assumption about infinities and NaN.
FLAGS = ("contract", "reassoc", "arcp", "nsz", "afn")


class Lanes(types.Type):
    """Eight float32 or float64."""

    def __init__(self, real: types.Float) -> None:
        """Keep the type of one lane."""
        self.real = real
        super().__init__(name=f"Lanes({real})")


class Mask(types.Type):
    """Eight truth values."""

    def __init__(self) -> None:
        """There is only one such type."""
        super().__init__(name="Mask")


mask_type = Mask()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, front_type: Lanes) -> None:
        super().__init__(manager, front_type, _vector(front_type.real))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, front_type: Mask) -> None:
        super().__init__(manager, front_type, ir.VectorType(ir.IntType(1), LANES))


def _vector(real: Any) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if real == types.float32 else ir.DoubleType(), LANES)


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    """A scalar in every lane."""
    vector = ir.VectorType(value.type, LANES)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


def _common(*operands: types.Type) -> Lanes | None:
    """The one `Lanes` type among the operands, if all others are scalars."""
    lanes = {operand for operand in operands if isinstance(operand, Lanes)}
    rest = [operand for operand in operands if not isinstance(operand, Lanes)]
    return lanes.pop() if len(lanes) == 1 and all(isinstance(o, types.Number) for o in rest) else None


def _widened(context: Any, builder: ir.IRBuilder, common: Lanes, signature: Any, values: Any) -> list[Any]:
    widened = []
    for kind, value in zip(signature.args, values, strict=True):
        if not isinstance(kind, Lanes):
            value = _splat(builder, context.cast(builder, value, kind, common.real))
        widened.append(value)
    return widened


def _intrinsic(function: Callable[..., Any]) -> Any:
    """The decorator of numba, typed so that kernels may leave out the typing context that numba adds."""
    return intrinsic(function)


def _define(apply: Callable[..., Any], arity: int, to_mask: bool = False) -> Any:
    """An intrinsic from a function that emits its instruction; scalars among the operands are widened."""

    def typed(operands: tuple[types.Type, ...]) -> tuple[Any, Any] | None:
        common = _common(*operands)
        if common is None:
            return None

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            return apply(builder, *_widened(context, builder, common, signature, values))

        return (mask_type if to_mask else common)(*operands), generate

    if arity == 1:
        return intrinsic(lambda context, a: typed((a,)))
    return intrinsic(lambda context, a, b: typed((a, b)))


def _overload_operator(symbol: Callable[..., Any], emit: Callable[..., Any], to_mask: bool = False) -> None:
    emitted = _define(emit, 2, to_mask)

    @overload(symbol, jit_options={"forceinline": True})
    def _(a, b):  # without annotations: numba compares the parameters with those of the lambda
        if _common(a, b) is not None:
            return lambda a, b: emitted(a, b)
        return None


_overload_operator(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=FLAGS))
_overload_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=FLAGS))
_overload_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=FLAGS))
_overload_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b, flags=FLAGS))
_overload_operator(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), to_mask=True)
_overload_operator(operator.le, lambda builder, a, b: builder.fcmp_ordered("<=", a, b), to_mask=True)

minimum = _define(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), 2)
minimum.__doc__ = "The smaller value, lane by lane; the second where one is not a number."


def _absolute(builder: ir.IRBuilder, a: Any) -> Any:
    name = f"llvm.fabs.v{LANES}f{32 if a.type.element == ir.FloatType() else 64}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type]), name)
    return builder.call(function, [a])


absolute = _define(_absolute, 1)
absolute.__doc__ = "The value without its sign, lane by lane."


@_intrinsic
def both(context: Any, a: Any, b: Any) -> Any:
    """Lane by lane "and" of two masks."""
    if not (isinstance(a, Mask) and isinstance(b, Mask)):
        return None
    return mask_type(a, b), lambda context, builder, signature, values: builder.and_(*values)


@_intrinsic
def select(context: Any, mask: Any, a: Any, b: Any) -> Any:
    """`a` where the mask holds, else `b`; one of the two may be a scalar."""
    common = _common(a, b)
    if not isinstance(mask, Mask) or common is None:
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        kinds = types.void(*signature.args[1:])
        return builder.select(values[0], *_widened(context, builder, common, kinds, values[1:]))

    return common(mask, a, b), generate


@_intrinsic
def ramp(context: Any, real: Any) -> Any:
    """0, 1, ... 7 of the type of the given scalar."""
    if not isinstance(real, types.Float):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        return ir.Constant(_vector(real), [float(i) for i in range(LANES)])

    return Lanes(real)(real), generate


@_intrinsic
def filled(context: Any, real: Any) -> Any:
    """A scalar in every lane."""
    if not isinstance(real, types.Float):
        return None
    return Lanes(real)(real), lambda context, builder, signature, values: _splat(builder, values[0])


def _pointer(context: Any, builder: ir.IRBuilder, kind: types.Array, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _vector(kind.dtype).as_pointer())


def _is_flat(array: Any, index: Any) -> bool:
    flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    return flat and isinstance(array.dtype, types.Float) and isinstance(index, types.Integer)


@_intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """Eight elements of a flat array from `index` on; the caller keeps inside its bounds."""
    if not _is_flat(array, index):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        return builder.load(_pointer(context, builder, array, *values), align=array.dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, index), generate


@_intrinsic
def store(context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight elements of a flat array from `index` on; the caller keeps inside its bounds."""
    if not _is_flat(array, index) or value != Lanes(array.dtype):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        builder.store(values[2], _pointer(context, builder, array, *values[:2]), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, value), generate


@_intrinsic
def total(context: Any, value: Any) -> Any:
    """Sum of all lanes, halves first: a fixed order."""
    if not isinstance(value, Lanes):
        return None

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        vector, width = values[0], LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    vector,
                    ir.Constant(vector.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(first, first + width))),
                )
                for first in (0, width)
            ]
            vector = builder.fadd(*halves, flags=FLAGS)
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return value.real(value), generate
