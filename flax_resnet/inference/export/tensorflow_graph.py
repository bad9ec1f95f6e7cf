"""A program as a module of TensorFlow's plain operations, without XLA: what TensorFlow Lite converts best.

JAX's arrays are NHWC, as TensorFlow's are, so each primitive has one operation. A value may have shorter axes (of
length 1) or fewer leading axes than its shape in JAX. Elementwise operations broadcast it; before all others it
gets its full shape. So a bias stays a vector, which TensorFlow Lite fuses with the convolution before it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from flax_resnet.errors import ConfigError
from flax_resnet.inference.export.equations import Equation, Equations, as_float16, equations_of
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.tensorflow_resize import resized

INPUT = "images"
# erf(x) = x P(x^2) / Q(x^2), highest power first, as XLA computes it in float32. TensorFlow Lite has no erf.
ERF_LIMIT = 3.7439211627767994
ERF_P = (
    0.00022905065861350646,
    0.0034082910107109506,
    0.050955695062380861,
    0.18520832239976145,
    1.128379143519084,
)
ERF_Q = (
    -1.1791602954361697e-7,
    0.000023547966471313185,
    0.0010179625278914885,
    0.014070470171167667,
    0.11098505178285362,
    0.49746925110067538,
    1.0,
)


class ProgramModule(tf.Module):
    """A program in TensorFlow.

    Attributes:
      serve: the function with the named input `images`, which returns {"logits": ...} or {"probabilities": ...}.

    Args:
      program: the program.
      precision: "float32", or "float16" to store kernels in float16; the module converts them to float32.

    Raises:
      ConfigError: the program has a primitive that has no operation here, or a weight is too large for float16.
    """

    def __init__(self, program: Program, precision: str = "float32"):
        super().__init__(name="flax_resnet")
        equations, softmax = equations_of(program), program.signature.softmax
        arrays = equations.constants
        if precision == "float16":
            arrays = as_float16(arrays)
        # Scalars stay numbers, so that `max(x, 0)` is recognised as relu.
        self._numbers = {n: array for n, array in arrays.items() if not array.ndim}
        self._variables = {
            str(n): tf.Variable(_without_leading_axes(array), trainable=False, name=f"constant_{n}")
            for n, array in arrays.items()
            if array.ndim
        }
        equations.constants.clear()  # the variables hold copies
        images = equations.images
        shape = [side if isinstance(side, int) else None for side in images.shape]
        size, resizes = program.signature.image_size, program.signature.preprocessing == "resize"
        if resizes:
            shape[1:3] = None, None

        def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
            if resizes:
                images = resized(images, program.config.data)
                images = tf.ensure_shape(images, [shape[0], size, size, 3])
            logits = self._logits(equations, images)
            if softmax:
                return {"probabilities": tf.nn.softmax(logits, name="probabilities")}
            return {"logits": tf.identity(logits, name="logits")}

        spec = tf.TensorSpec(shape, images.dtype, name=INPUT)
        self.serve = tf.function(serve, input_signature=[spec], autograph=False)

    def _logits(self, equations: Equations, images: tf.Tensor) -> tf.Tensor:
        constants = {int(n): tf.cast(v, _wide(v.dtype)) for n, v in self._variables.items()}
        batch = images.shape[0] or tf.shape(images)[0]

        def apply(step: Equation, operands: list) -> Sequence[tf.Tensor]:
            name = step.primitive.name
            if name in ELEMENTWISE:
                return [ELEMENTWISE[name](*operands)]
            if name in TYPED:
                return [TYPED[name](step.params, *operands)]
            if name not in OPERATIONS:
                raise _unsupported(f"the operation {name!r}")
            shapes = [shape.shape for shape in step.shapes]
            full = [_full(x, shape, batch) for x, shape in zip(operands, shapes, strict=True)]
            return [OPERATIONS[name](step, *full)]

        logits = equations.run(images, {**self._numbers, **constants}, apply)
        (_, classes) = equations.logits.shape
        return tf.ensure_shape(_full(logits, equations.logits.shape, batch), [None, classes])


def _unsupported(what: str) -> ConfigError:
    return ConfigError(
        f"TensorFlow's formats do not support {what}",
        key="--format",
        value="saved_model",
        cure="export to stablehlo",
    )


def _wide(dtype: tf.DType) -> tf.DType:
    return tf.float32 if dtype == tf.float16 else dtype


def _without_leading_axes(array: np.ndarray) -> np.ndarray:
    """Return [1, 1, 1, C] as a vector."""
    return array.reshape(-1) if array.shape[:-1] == (1,) * (array.ndim - 1) else array


def _sides(shape: Sequence[Any]) -> list[int]:
    """Return a shape with -1 for the batch."""
    return [side if isinstance(side, int) else -1 for side in shape]


def _full(x: Any, shape: Sequence[Any], batch: Any) -> tf.Tensor:
    """Return a value with its shape in JAX."""
    x = tf.convert_to_tensor(x)
    if [side or -1 for side in x.shape] == _sides(shape):
        return x
    if math.prod(side or -1 for side in x.shape) == math.prod(_sides(shape)):
        return tf.reshape(x, _sides(shape))
    return tf.broadcast_to(x, [batch if side == -1 else side for side in _sides(shape)])


# --- elementwise ---


def _maximum(x: Any, y: Any) -> tf.Tensor:
    for value, other in ((x, y), (y, x)):
        if isinstance(value, np.ndarray) and not value.ndim and value == 0:
            return tf.nn.relu(other)
    return tf.maximum(x, y)


def _erf(x: tf.Tensor) -> tf.Tensor:
    x = tf.clip_by_value(x, -ERF_LIMIT, ERF_LIMIT)
    square = x * x

    def polynomial(coefficients: Sequence[float]) -> Any:
        value: Any = np.float32(coefficients[0])
        for coefficient in coefficients[1:]:
            value = value * square + np.float32(coefficient)
        return value

    return x * polynomial(ERF_P) / polynomial(ERF_Q)


def _select(which: tf.Tensor, if_false: Any, if_true: Any) -> tf.Tensor:
    return tf.where(which, if_true, if_false)


ELEMENTWISE: dict[str, Callable] = {
    "add": tf.add,
    "add_any": tf.add,
    "sub": tf.subtract,
    "mul": tf.multiply,
    "div": tf.divide,
    "max": _maximum,
    "min": tf.minimum,
    "neg": tf.negative,
    "abs": tf.abs,
    "exp": tf.exp,
    "expm1": lambda x: tf.exp(x) - 1.0,  # TensorFlow Lite has no expm1
    "log": tf.math.log,
    "log1p": lambda x: tf.math.log(1.0 + x),
    "logistic": tf.sigmoid,
    "tanh": tf.tanh,
    "erf": _erf,
    "sqrt": tf.sqrt,
    "rsqrt": tf.math.rsqrt,
    "square": tf.square,
    "pow": tf.pow,
    "gt": tf.greater,
    "ge": tf.greater_equal,
    "lt": tf.less,
    "le": tf.less_equal,
    "eq": tf.equal,
    "select_n": _select,
    "clamp": lambda low, x, high: tf.minimum(tf.maximum(x, low), high),
    "stop_gradient": tf.identity,
    "copy": tf.identity,
    "optimization_barrier": tf.identity,
}


def _rounded(params: dict, x: tf.Tensor) -> tf.Tensor:
    if "EVEN" not in params["rounding_method"].name:
        raise _unsupported("this rounding")
    return tf.round(x)


def _broadcast(params: dict, x: Any) -> tf.Tensor:
    """Insert axes of length 1."""
    x = tf.convert_to_tensor(x)
    axes, sides = params["broadcast_dimensions"], [1] * len(params["shape"])
    missing = len(axes) - len(x.shape)  # leading axes of length 1 that were left out
    for axis, side in zip(axes[missing:], x.shape, strict=True):
        sides[axis] = -1 if side is None else side
    return x if sides == [side or -1 for side in x.shape] else tf.reshape(x, sides)


# Elementwise operations with parameters.
TYPED: dict[str, Callable] = {
    "convert_element_type": lambda params, x: tf.cast(x, params["new_dtype"]),
    "integer_pow": lambda params, x: tf.pow(x, float(params["y"])),
    "round": _rounded,
    "broadcast_in_dim": _broadcast,
}

# --- windows ---


def _padding(
    sides: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Sequence
) -> str:
    """Return "VALID" or "SAME" if it stands for this padding, else ""."""
    if not any(map(any, padding)):
        return "VALID"
    for side, size, stride, (low, high) in zip(sides, window, strides, padding, strict=True):
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        if (low, high) != (total // 2, total - total // 2):
            return ""
    return "SAME"


def _padded(
    x: tf.Tensor, window: Sequence[int], strides: Sequence[int], padding: Sequence, fill: float
) -> tuple[tf.Tensor, str]:
    """Return images and the name of the padding that is left; paddings without a name are applied.

    Args:
      x: [N, H, W, C].
      window: height and width of the window.
      strides: those of height and width.
      padding: (low, high) of height and width.
      fill: the padded values.
    """
    named = _padding(x.shape[1:3], window, strides, padding)
    if named:
        return x, named
    return tf.pad(x, [(0, 0), *padding, (0, 0)], constant_values=fill), "VALID"


def _convolve(step: Equation, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    params = step.params
    numbers, strides = params["dimension_numbers"], params["window_strides"]
    dilation, groups = params["rhs_dilation"], params["feature_group_count"]
    specs = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    if specs != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)) or params["batch_group_count"] > 1:
        raise _unsupported("this layout of a convolution")
    if set(params["lhs_dilation"]) != {1}:
        raise _unsupported("a transposed convolution")
    height, width, inputs, outputs = kernel.shape
    window = [(size - 1) * d + 1 for size, d in zip((height, width), dilation, strict=True)]
    x, padding = _padded(x, window, strides, params["padding"], 0.0)
    if groups > 1 and inputs == 1:
        kernel = tf.reshape(kernel, [height, width, groups, outputs // groups])
        return tf.nn.depthwise_conv2d(
            x, kernel, [1, *strides, 1], padding=padding, dilations=[*dilation]
        )
    return tf.nn.conv2d(x, kernel, [*strides], padding=padding, dilations=[*dilation])


def _pool(step: Equation, x: tf.Tensor, kind: str) -> tf.Tensor:
    params = step.params
    window, strides = params["window_dimensions"], params["window_strides"]
    outer = {*window[::3], *strides[::3]}
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if len(window) != 4 or outer != {1} or dilated:
        raise _unsupported("this pooling")
    fill = float(np.finfo(np.float32).min) if kind == "MAX" else 0.0
    window, strides = window[1:3], strides[1:3]
    if kind == "MAX":
        x, padding = _padded(x, window, strides, params["padding"][1:3], fill)
        return tf.nn.max_pool2d(x, window, strides, padding)
    # A mean over "SAME" would not count what was padded.
    if any(map(any, params["padding"])):
        x = tf.pad(x, params["padding"])
    return tf.nn.avg_pool2d(x, window, strides, "VALID") * float(math.prod(window))


def _dot(step: Equation, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    (left, right), (batch_left, batch_right) = step.params["dimension_numbers"]
    if batch_left or batch_right:
        raise _unsupported("a product of batches")
    if tuple(left) != (len(x.shape) - 1,) or tuple(right) != (0,) or len(y.shape) != 2:
        return tf.tensordot(x, y, [[*left], [*right]])
    flat = tf.reshape(x, [-1, x.shape[-1]]) if len(x.shape) > 2 else x
    product = tf.matmul(flat, y)
    return product if len(x.shape) == 2 else tf.reshape(product, _sides(step.outputs[0].shape))


def _pad(step: Equation, x: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    sides = step.params["padding_config"]
    if any(low < 0 or high < 0 or inside for low, high, inside in sides):
        raise _unsupported("a padding between pixels, or a negative one")
    return tf.pad(x, [(int(low), int(high)) for low, high, _ in sides], constant_values=fill)


def _slice(step: Equation, x: tf.Tensor) -> tf.Tensor:
    params = step.params
    strides = params["strides"] or [1] * len(x.shape)
    parts = []
    for start, end, stride in zip(
        params["start_indices"], params["limit_indices"], strides, strict=True
    ):
        parts.append(slice(start, end if isinstance(end, int) else None, stride))
    return x[tuple(parts)]


def _reduced(function: Callable) -> Callable:
    return lambda step, x: function(x, axis=[*step.params["axes"]])


OPERATIONS: dict[str, Callable] = {
    "conv_general_dilated": _convolve,
    "dot_general": _dot,
    "reduce_window_max": lambda step, x: _pool(step, x, "MAX"),
    "reduce_window_sum": lambda step, x: _pool(step, x, "SUM"),
    "reduce_sum": _reduced(tf.reduce_sum),
    "reduce_max": _reduced(tf.reduce_max),
    "reduce_min": _reduced(tf.reduce_min),
    "reshape": lambda step, x: tf.reshape(x, _sides(step.outputs[0].shape)),
    "squeeze": lambda step, x: tf.reshape(x, _sides(step.outputs[0].shape)),
    "expand_dims": lambda step, x: tf.reshape(x, _sides(step.outputs[0].shape)),
    "transpose": lambda step, x: tf.transpose(x, step.params["permutation"]),
    "concatenate": lambda step, *parts: tf.concat(parts, step.params["dimension"]),
    "rev": lambda step, x: tf.reverse(x, step.params["dimensions"]),
    "pad": _pad,
    "slice": _slice,
}
