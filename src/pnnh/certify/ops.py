"""What each ATen operator is to the certificate. An operator that no table lists is refused by name.

A table says which arguments of an operator are multiplied (FACTORS), which only choose (CHOICES) and which do not enter
the result (IGNORED); all other arguments that depend on the input are added. Linear means linear or affine.
"""

# ruff: noqa: SIM905  (tables of words read best as words)

from __future__ import annotations

NAMED_ACTIVATIONS = (  # the functions that a network uses as such; `pnnh.analysis.probe` watches the same
    "relu relu6 hardtanh gelu silu mish hardswish elu selu celu leaky_relu prelu rrelu threshold sigmoid hardsigmoid "
    "tanh softplus logsigmoid softsign tanhshrink hardshrink softshrink glu"
).split()
ACTIVATIONS = frozenset(NAMED_ACTIVATIONS) - {"glu"} | frozenset(
    "_prelu_kernel rrelu_with_noise log_sigmoid log_sigmoid_forward clamp clamp_min clamp_max clip maximum minimum "
    "fmax fmin abs absolute sign sgn angle copysign square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p "
    "logit sin cos tan sinc asin acos atan arcsin arccos arctan atan2 arctan2 sinh cosh asinh acosh atanh arcsinh "
    "arccosh arctanh erf erfc erfinv lgamma digamma mvlgamma polygamma i0 hypot logaddexp logaddexp2 ceil floor round "
    "trunc fix frac fmod remainder floor_divide floordiv frexp heaviside special_entr special_erfcx special_i0e "
    "special_i1 special_i1e special_log_ndtr special_ndtr special_ndtri special_airy_ai special_bessel_j0 "
    "special_bessel_j1 special_bessel_y0 special_bessel_y1 special_modified_bessel_i0 special_modified_bessel_i1 "
    "special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0 "
    "special_scaled_modified_bessel_k1 special_spherical_bessel_j0 special_expit special_erf special_erfc "
    "special_expm1 special_exp2 special_log1p "
    "special_sinc special_logit special_psi special_gammaln special_digamma special_i0 "  # of each value by itself
    "gt ge lt le eq ne greater less isnan isinf isfinite isneginf isposinf signbit logical_and logical_or logical_not "
    "logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__ isin isclose bucketize "
    "searchsorted bernoulli multinomial any all "  # where(x > 0, x, 0) is a ReLU
    "amax amin aminmax max min argmax argmin sort argsort msort topk kthvalue median nanmedian mode quantile "
    "nanquantile unique_dim _unique2 cummax cummin cumprod prod logsumexp logcumsumexp nonzero count_nonzero norm "
    "linalg_vector_norm linalg_norm frobenius_norm nuclear_norm var var_mean std std_mean cdist _cdist_forward pdist "
    "pairwise_distance cosine_similarity linalg_matrix_norm renorm "  # of many values
    "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine quantize_per_tensor quantize_per_channel "
    "dequantize fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask".split()
)
POOLS = frozenset(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d".split()
)
SOFTMAX = frozenset("softmax _softmax _safe_softmax softmin".split())
LOG_SOFTMAX = frozenset("log_softmax _log_softmax".split())
ATTENTION = frozenset(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_flash_attention _scaled_dot_product_attention_math _scaled_dot_product_cudnn_attention".split()
)
CONTRACTIONS = frozenset("matmul bmm mm mv einsum baddbmm addbmm addmm".split())
NORMS = frozenset(
    "layer_norm native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm".split()
)
STATISTICS = frozenset("linalg_vector_norm norm frobenius_norm var std var_mean std_mean".split())
LINEAR = frozenset(
    "add sub rsub subtract neg negative positive clone alias detach detach_ contiguous to _to_copy type_as _conj "
    "_conj_physical conj_physical conj resolve_conj resolve_neg _neg_view real imag view_as_real view_as_complex "
    "deg2rad rad2deg nan_to_num lift_fresh_copy lift_fresh lift item _local_scalar_dense scalar_tensor full full_like "
    "new_full fill copy float double half bfloat16 complex sym_float cat concat concatenate stack hstack vstack "
    "dstack column_stack view _unsafe_view view_copy reshape _reshape_alias flatten unflatten ravel permute transpose "
    "t numpy_T mT swapaxes swapdims movedim moveaxis adjoint matrix_H squeeze unsqueeze expand expand_copy expand_as "
    "view_as reshape_as broadcast_to select slice narrow select_copy slice_copy split split_with_sizes split_copy "
    "split_with_sizes_copy unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split hsplit vsplit dsplit "
    "unbind getitem diagonal diag diag_embed diagflat diagonal_copy tril triu trace as_strided flip fliplr flipud "
    "roll rot90 repeat tile repeat_interleave unfold unfold_copy pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle im2col col2im pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d _pad_circular _pad_enum meshgrid broadcast_tensors "
    "atleast_1d atleast_2d atleast_3d block_diag sum nansum mean nanmean cumsum diff avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa sum_to_size one_hot dropout native_dropout feature_dropout "
    "alpha_dropout feature_alpha_dropout _fft_c2c _fft_r2c _fft_c2r fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn "
    "fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn fft_fftshift fft_ifftshift stft istft "
    "slice_scatter select_scatter "
    "diagonal_scatter as_strided_scatter".split()
)
_PRODUCTS = (
    "mul multiply div divide true_divide truediv matmul mm bmm mv dot vdot inner outer ger kron cross linalg_cross "
    "linalg_multi_dot tensordot einsum linalg_matmul ldexp chain_matmul"
)
_CONVOLUTIONS = (
    "conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d linear "
    "mkldnn_linear conv_depthwise3d"
)
_BATCH_NORMS = (
    "batch_norm _batch_norm_with_update _batch_norm_no_update native_batch_norm cudnn_batch_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training"
)
FACTORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        _PRODUCTS.split(), ("self", "other", "mat2", "tensor", "vec", "vec2", "tensors", "matrices", "input")
    ),
    **dict.fromkeys(_CONVOLUTIONS.split(), ("input", "weight")),
    **dict.fromkeys([*_BATCH_NORMS.split(), *NORMS], ("input", "weight", "running_var")),
    "bilinear": ("input1", "input2", "weight"),
    "_trilinear": ("i1", "i2", "i3"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
    "addr": ("vec1", "vec2"),
    "addcmul": ("tensor1", "tensor2"),
    "addcdiv": ("tensor1", "tensor2"),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), ("input", "grid")),
}
INVERTED = dict.fromkeys(("div", "divide", "true_divide", "truediv"), "other") | {
    "addcdiv": "tensor2",
    "ldexp": "other",
}
INVERTED |= dict.fromkeys((name for name, factors in FACTORS.items() if "running_var" in factors), "running_var")
INVERTED |= dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), "grid")  # through 1 / x, 2^x, weights
CHOICES: dict[str, tuple[str, ...]] = {
    "where": ("condition",),
    "masked_fill": ("mask",),
    "masked_scatter": ("mask",),
    "masked_select": ("mask",),
    "lerp": ("weight",),
    "index": ("indices",),
    "_unsafe_index": ("indices",),
    "index_put": ("indices",),
    "_unsafe_index_put": ("indices",),
    "embedding": ("indices",),
    "take_along_dim": ("indices",),
    **dict.fromkeys(
        "gather index_select take index_add index_copy index_fill scatter scatter_add put".split(), ("index",)
    ),
}
IGNORED: dict[str, tuple[str, ...]] = {  # only their size or type enters the result
    **dict.fromkeys(
        "zeros_like ones_like empty_like rand_like randn_like randint_like full_like new_zeros new_ones new_empty "
        "new_full new_empty_strided empty_strided sym_size sym_numel sym_stride sym_storage_offset size numel dim "
        "uniform normal_functional normal exponential geometric cauchy log_normal random fill copy "
        "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range_for_size sym_constrain_range "
        "_functional_assert_async _functional_assert_scalar _functional_sym_constrain_range".split(),
        ("self", "a", "assert_msg", "size"),
    ),
    **dict.fromkeys("expand_as view_as reshape_as type_as".split(), ("other",)),
}
POWERS = frozenset(["pow", "float_power"])
OPAQUE = frozenset("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell quantized_lstm".split())


def base_name(target) -> str:
    """`aten.add_.Tensor` -> `add`; any other callable -> its own name."""
    name = target._schema.name if hasattr(target, "_schema") else getattr(target, "__name__", str(target))
    name = name.rsplit("::", 1)[-1].split(".")[0]
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


def full_name(target) -> str:
    """`aten::add.Tensor` of an operator; any other callable -> its own name."""
    return str(target).replace(".", "::", 1) if hasattr(target, "_schema") else getattr(target, "__name__", str(target))


def listed(target) -> bool:
    """Does a table here say what `target`, an operator of torch or Python itself, does?"""
    tables = (ACTIVATIONS, POOLS, SOFTMAX, LOG_SOFTMAX, ATTENTION, LINEAR, FACTORS, CHOICES, IGNORED, ("glu", *POWERS))
    own = not hasattr(target, "_schema") or target._schema.name.startswith("aten::")
    return own and any(base_name(target) in table for table in tables)
