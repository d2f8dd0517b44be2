"""What each ATen operator is to the certificate: an activation, a join, a gate, a source, or linear.

An operator with several operands that no table names is taken for a join: unknown code can make a plain net look
not plain, never the other way round.
"""

# ruff: noqa: SIM905  (tables of words read best as words)

from __future__ import annotations

ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu prelu _prelu_kernel rrelu rrelu_with_noise threshold hardtanh clamp clamp_min clamp_max "
    "clip elu selu celu gelu silu mish softplus hardswish hardsigmoid hardshrink softshrink sigmoid log_sigmoid "
    "log_sigmoid_forward tanh erf sin cos abs sign gt ge lt le eq ne heaviside round floor ceil".split()
)  # comparisons too: where(x > 0, x, 0) is a ReLU
SOFTMAX = frozenset("softmax _softmax log_softmax _log_softmax _safe_softmax".split())
ATTENTION = frozenset(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_flash_attention _scaled_dot_product_attention_math".split()
)
GATES = frozenset(
    "mul div true_divide matmul bmm mm mv dot einsum outer linear conv1d conv2d conv3d convolution conv_transpose2d "
    "bilinear gather index index_select embedding take_along_dim grid_sampler grid_sampler_2d pow batch_norm "
    "layer_norm native_layer_norm group_norm native_group_norm rms_norm masked_fill bitwise_and logical_and".split()
)
AFFINE_GATES = frozenset("addmm baddbmm addbmm addmv addcmul".split())
SHAPE_ONLY = frozenset(  # the result holds no value of the operand, only its size or type
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty sym_size "
    "sym_numel sym_stride size numel _assert_tensor_metadata _assert_scalar _assert_async".split()
)
FIRST_ONLY = frozenset("expand_as view_as reshape_as type_as".split())
PAIRWISE_EXTREMA = frozenset("maximum minimum fmax fmin".split())  # with a constant they are a clamp
OPAQUE = frozenset("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell quantized_lstm quantized_gru".split())


def base_name(target) -> str:
    """`aten.add_.Tensor` -> `add`; any other callable -> its own name."""
    name = target._schema.name if hasattr(target, "_schema") else getattr(target, "__name__", str(target))
    name = name.rsplit("::", 1)[-1].split(".")[0]
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]
