"""Write fedq/plan/ops.py: the op table, from torch's schemas and the choices below.

    python tools/make_ops.py            # writes it, for the torch that it was judged for
    python tools/make_ops.py --check    # says whether it is what this torch gives

For another torch `make ops` (tools/judge_ops.py) lists what changed, fuzzes it and writes the table.

An op is allowed if its name stands in ALLOW, its schema is functional (nothing written to, no
``out``), every argument is of a kind a plan can hold, and DENY does not name it. What an op must
be given beyond its schema, so that it neither crashes nor reads beyond its arguments, is in
CONTRACTS; the words are explained in fedq/plan/optable.py.
"""

from __future__ import annotations

import hashlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "fedq/plan/ops.py"

ALLOW = """
arithmetic: abs add addcdiv addcmul clamp clamp_max clamp_min clip copysign div floor_divide fmod frac gcd hypot
  lcm ldexp lerp maximum minimum fmax fmin mul neg positive pow float_power reciprocal remainder rsub sign sgn signbit
  square sub true_divide nan_to_num nextafter heaviside round ceil floor trunc absolute negative subtract multiply
  divide fix
powers, logarithms, angles: acos acosh angle asin asinh atan atan2 atanh cos cosh deg2rad digamma erf erfc erfinv exp
  exp2 expm1 frexp i0 igamma igammac lgamma log log10 log1p log2 logaddexp logaddexp2 logit polygamma rad2deg rsqrt
  sin sinc sinh special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 special_entr
  special_erfcx special_i0e special_i1 special_i1e special_log_ndtr special_modified_bessel_i0
  special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1 special_ndtri
  special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_spherical_bessel_j0 special_xlog1py
  special_zeta sqrt tan tanh xlogy arctan2 special_expit special_logit special_erf special_erfc
  arccos arccosh arcsin arcsinh arctan arctanh mvlgamma special_digamma special_erfinv special_exp2 special_expm1
  special_gammainc special_gammaincc special_gammaln special_i0 special_log1p special_multigammaln special_ndtr
  special_polygamma special_psi special_round special_sinc special_xlogy special_chebyshev_polynomial_t
  special_chebyshev_polynomial_u special_chebyshev_polynomial_v special_chebyshev_polynomial_w
  special_hermite_polynomial_h special_hermite_polynomial_he special_laguerre_polynomial_l
  special_legendre_polynomial_p special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
  special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w
comparison and logic: bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor __and__
  __or__ __xor__ __lshift__ __rshift__ eq ge gt isfinite isinf isnan isneginf isposinf isclose le logical_and
  logical_not logical_or logical_xor lt ne where greater less greater_equal less_equal not_equal isin
  isreal _is_all_true _is_any_true
complex: _conj _conj_physical conj_physical complex imag real polar view_as_real view_as_complex adjoint resolve_conj
  resolve_neg _neg_view
  conj   view_as_complex_copy view_as_real_copy
reduction: all amax amin aminmax any argmax argmin count_nonzero logsumexp max mean median min mode nanmean nanmedian
  nansum norm prod quantile nanquantile std std_mean sum var var_mean linalg_vector_norm linalg_norm
  linalg_matrix_norm trace
  frobenius_norm nuclear_norm special_logsumexp histogram hash_tensor norm_except_dim
running and sorting: argsort cummax cummin cumprod cumsum diff kthvalue logcumsumexp msort sort topk searchsorted
  bucketize histc unique_consecutive
  trapezoid trapz cumulative_trapezoid gradient segment_reduce unique_dim _unique2 renorm
shapes: alias atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to chunk contiguous detach diag diag_embed
  diagonal expand expand_as flatten flip fliplr flipud hsplit movedim moveaxis mT mH matrix_H narrow numpy_T permute
  pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90 select slice split
  split_with_sizes squeeze swapaxes swapdims t tensor_split tile transpose tril triu unbind unflatten unfold
  unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze view view_as _unsafe_view vsplit dsplit channel_shuffle
  unsqueeze_copy
  alias_copy detach_copy diagonal_copy expand_copy narrow_copy permute_copy select_copy slice_copy split_copy
  split_with_sizes_copy squeeze_copy t_copy transpose_copy unbind_copy unfold_copy view_copy diagflat sum_to_size
  linalg_diagonal
joining: block_diag cartesian_prod cat column_stack concat concatenate dstack hstack meshgrid row_stack stack vstack
  pad_sequence combinations
indexing: diagonal_scatter gather index index_add index_copy index_fill index_put index_reduce index_select masked_fill
  masked_scatter scatter scatter_add scatter_reduce select_backward select_scatter slice_backward slice_scatter take
  take_along_dim _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate put
  one_hot nonzero argwhere masked_select embedding embedding_dense_backward diagonal_backward
  unfold_backward value_selecting_reduction_backward index_select_backward trace_backward masked_select_backward
  cumprod_backward gather_backward
  nonzero_static nonzero_numpy masked_scatter_backward
making: arange eye fill full full_like linspace logspace new_full new_ones new_zeros ones ones_like scalar_tensor
  tril_indices triu_indices zeros zeros_like hann_window hamming_window copy
  bartlett_window blackman_window kaiser_window  vander linalg_vander
copies and dtypes: _to_copy clone lift lift_fresh lift_fresh_copy to type_as item _local_scalar_dense
random: bernoulli multinomial normal poisson rand rand_like randint randint_like randn randn_like randperm uniform
  exponential normal_functional dropout alpha_dropout feature_dropout feature_alpha_dropout native_dropout
  native_dropout_backward geometric log_normal cauchy
  random
products: addbmm addmm addmv addr baddbmm bilinear _trilinear bmm chain_matmul dot einsum inner kron
  linalg_cross linalg_multi_dot linalg_vecdot linear matmul mm mv outer tensordot vdot cross cov corrcoef
  linalg_matmul ger linear_backward
linear algebra: linalg_cholesky linalg_cholesky_ex linalg_det _linalg_det linalg_eigh _linalg_eigh linalg_eigvalsh
  linalg_inv linalg_inv_ex linalg_matrix_exp linalg_matrix_power linalg_pinv linalg_qr linalg_slogdet _linalg_slogdet
  linalg_solve linalg_solve_ex _linalg_solve_ex linalg_solve_triangular linalg_svd _linalg_svd linalg_svdvals
  inverse det logdet slogdet cholesky_solve matrix_power matrix_exp cholesky
  cholesky_inverse linalg_cond linalg_eig linalg_eigvals linalg_householder_product linalg_ldl_factor
  linalg_ldl_factor_ex  linalg_lstsq linalg_lu linalg_lu_factor linalg_lu_factor_ex linalg_lu_solve
  linalg_matrix_rank linalg_tensorinv linalg_tensorsolve lu_solve lu_unpack _lu_with_info orgqr ormqr geqrf pinverse
  qr svd triangular_solve
fourier: _fft_c2c _fft_c2r _fft_r2c fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft2
  fft_irfft2 fft_fftshift fft_ifftshift fft_fftfreq fft_rfftfreq fft_hfft fft_ihfft
  fft_hfft2 fft_hfftn fft_ihfft2 fft_ihfftn fft_irfftn fft_rfftn stft istft
activations: _log_softmax _log_softmax_backward_data _prelu_kernel _prelu_kernel_backward _safe_softmax _softmax
  _softmax_backward_data celu elu elu_backward gelu gelu_backward glu glu_backward hardshrink hardshrink_backward
  hardsigmoid hardsigmoid_backward hardswish hardswish_backward hardtanh hardtanh_backward leaky_relu
  leaky_relu_backward log_sigmoid log_sigmoid_backward log_sigmoid_forward log_softmax logit_backward mish
  mish_backward prelu relu relu6 selu sigmoid sigmoid_backward silu silu_backward softmax softplus softplus_backward
  softshrink softshrink_backward tanh_backward threshold threshold_backward special_softmax special_log_softmax rrelu
losses: binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits cosine_embedding_loss
  cosine_similarity cross_entropy_loss hinge_embedding_loss huber_loss huber_loss_backward kl_div l1_loss
  margin_ranking_loss mse_loss mse_loss_backward nll_loss nll_loss_nd
  nll_loss_forward nll_loss_backward nll_loss2d nll_loss2d_forward nll_loss2d_backward pairwise_distance
  poisson_nll_loss smooth_l1_loss smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward
  triplet_margin_loss multi_margin_loss multilabel_margin_loss ctc_loss cdist _cdist_forward _cdist_backward
  _pdist_forward pdist dist
layers: batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit_functional _native_batch_norm_legit
  native_batch_norm_backward instance_norm group_norm native_group_norm native_group_norm_backward layer_norm
  native_layer_norm native_layer_norm_backward rms_norm _fused_rms_norm conv1d conv2d conv3d conv_transpose1d
  conv_transpose2d conv_transpose3d convolution convolution_backward lstm gru rnn_tanh rnn_relu lstm_cell gru_cell
  rnn_tanh_cell rnn_relu_cell scaled_dot_product_attention _scaled_dot_product_attention_math
  _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
  _weight_norm _weight_norm_interface _weight_norm_interface_backward embedding_bag
pooling, padding, images: _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d adaptive_avg_pool1d
  adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool2d_backward
  avg_pool1d avg_pool2d avg_pool2d_backward avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
  max_pool2d_with_indices_backward max_pool3d_with_indices constant_pad_nd pad reflection_pad1d reflection_pad2d
  reflection_pad3d reflection_pad1d_backward reflection_pad2d_backward replication_pad1d replication_pad2d
  replication_pad3d replication_pad1d_backward replication_pad2d_backward affine_grid_generator grid_sampler
  max_pool3d_with_indices_backward avg_pool3d_backward
  grid_sampler_2d grid_sampler_3d upsample_bilinear2d upsample_nearest1d upsample_nearest2d upsample_linear1d
  upsample_bicubic2d col2im im2col grid_sampler_2d_backward grid_sampler_3d_backward
  upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
  _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa adaptive_max_pool3d
  adaptive_max_pool3d_backward _adaptive_avg_pool3d_backward affine_grid_generator_backward fractional_max_pool2d
  fractional_max_pool3d max_unpool2d max_unpool3d max_pool1d_with_indices reflection_pad3d_backward
  replication_pad3d_backward upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
  upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward upsample_bicubic2d_backward
  _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward
  _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward
"""

DENY = {
    "aten.to.device": "a plan names no devices",
    "aten.to.prim_Device": "a plan names no devices",
    "aten.to.prim_dtype": "names a dtype by number; use aten.to.dtype",
    "aten.to.prim_other": "use aten.to.dtype",
    "aten.to.other": "a plan names no devices; use aten.to.dtype",
    "aten.cartesian_prod.names": "named dimensions",
    "aten._native_batch_norm_legit": "writes to the running statistics; use _native_batch_norm_legit_functional",
    "aten.lstm.data": "reads by lengths given as data; use aten.lstm.input",
    "aten.gru.data": "reads by lengths given as data; use aten.gru.input",
    "aten.rnn_tanh.data": "reads by lengths given as data; use aten.rnn_tanh.input",
    "aten.rnn_relu.data": "reads by lengths given as data; use aten.rnn_relu.input",
    "aten.tensor_split.tensor_indices_or_sections": "the shape of its result depends on data",
    "aten.norm.names_ScalarOpt_dim": "named dimensions",
}
"""Overloads of allowed names that are denied all the same, and why."""

WHY = {
    "empty": "hands out memory that was not written to, and so other people's data; use zeros",
    "resize": "hands out memory that was not written to, and so other people's data; use zeros",
    "as_strided": "reads memory by offset; use slicing, unfold or reshape",
    "set": "shares memory with another tensor or a storage; use clone",
    "set_data": "shares memory with another tensor or a storage",
    "storage": "shares memory with another tensor or a storage",
    "from_file": "opens files; pass the tensor as an argument",
    "from_blob": "reads memory by address",
    "record_stream": "a plan names no devices",
    "_embedding_bag": "crashes on inconsistent offsets; use embedding and a sum",
    "_ctc_loss": "crashes on inconsistent lengths; its gradient has no place in a plan",
    "batch_norm_update_stats": "crashes on inconsistent lengths; use batch_norm",
    "mkldnn_rnn_layer": "crashes on inconsistent sizes; record with mkldnn off",
    "_reshape_alias": "reads memory by offset; use reshape",
    "binomial": "can run for ever on large counts; sum bernoulli over a dimension",
    "linalg_ldl_solve": "crashes on inconsistent pivots; use linalg.solve",
    "native_batch_norm": "reads beyond statistics of the wrong length; use _native_batch_norm_legit_functional",
    "_pdist_backward": "reads beyond arguments of the wrong shape; use cdist",
    "bincount": "takes memory by the largest value in the data; use one_hot(x, n).sum(0) or histc",
    "rrelu_with_noise": "its random slopes can not be told from the seed alone; use leaky_relu",
    "embedding_renorm": "it writes to the weights; normalize them first, and leave max_norm out",
    "_scaled_mm": "its floats of eight bits are for GPUs; use matmul",
    "_scaled_grouped_mm": "its floats of eight bits are for GPUs; use matmul",
    "range": "deprecated by torch; use arange",
    "_chunk_cat": "crashes on some sizes; use chunk and cat",
    "_batch_norm_with_update": "reads beyond statistics of the wrong length; use batch_norm",
    "_batch_norm_no_update": "reads beyond statistics of the wrong length; use batch_norm",
    "histogramdd": "it gives a list beside a tensor; use histc or histogram",
    "_histogramdd_bin_edges": "it gives a list beside a tensor; use histc or histogram",
    "to_sparse": "sparse tensors have no place in a plan; keep them dense",
    "sparse": "sparse tensors have no place in a plan; keep them dense",
    "_sparse": "sparse tensors have no place in a plan; keep them dense",
    "_record_function_enter": "profiling",
}
"""Reasons for names outside ALLOW that people ask for: a base name, and what starts with it."""

_STATISTICS = [
    "length weight input 1", "length bias input 1", "length running_mean input 1", "length running_var input 1",
    "floats input weight bias running_mean running_var", "contiguous weight bias running_mean running_var",
]  # fmt: skip
_POOLED = ["same grad_output indices", "values indices 0 plane", "leading grad_output self 2"]
CONTRACTS = {
    "": [  # by the name of an argument, wherever it stands
        "reduction in 0 1 2", "interpolation_mode in 0 1 2", "padding_mode in 0 1 2", "normalization in 0 1 2",
        "mode in constant reflect replicate circular", "rounding_mode in trunc floor", "approximate in none tanh",
        "indexing in ij xy", "side in left right", "norm in ortho forward backward", "UPLO in L U",
        "reduce in sum prod mean amax amin add multiply max min",
        "interpolation in linear lower higher midpoint nearest", "driver in gels gelsy gelsd gelss gesvd gesvdj gesvda",
    ],
    "embedding_dense_backward": ["values indices 0 num_weights"],
    "max_pool2d_with_indices_backward": _POOLED,
    "max_pool3d_with_indices_backward": [
        "same grad_output indices", "values indices 0 space", "leading grad_output self 3",
    ],
    "adaptive_max_pool2d_backward": _POOLED,
    "adaptive_max_pool3d_backward": [
        "i64 indices", "same grad_output indices", "values indices 0 space", "leading grad_output self 3",
        "kin grad_output self", "contiguous grad_output self indices",
    ],
    "_adaptive_avg_pool3d_backward": [
        "leading grad_output self 3", "planes self 3", "kin grad_output self", "contiguous grad_output self",
    ],
    "fractional_max_pool2d": ["drawn random_samples 2", "contiguous random_samples"],
    "fractional_max_pool3d": ["drawn random_samples 3", "contiguous random_samples"],
    **{f"{name}{n}d_backward": [f"resized grad_output {n}", "contiguous grad_output"] for name, n in (
        ("upsample_nearest", 1), ("upsample_nearest", 2), ("upsample_nearest", 3), ("upsample_linear", 1),
        ("upsample_bilinear", 2), ("upsample_bicubic", 2), ("upsample_trilinear", 3),
        ("_upsample_nearest_exact", 1), ("_upsample_nearest_exact", 2), ("_upsample_nearest_exact", 3),
    )},
    "_upsample_bilinear2d_aa_backward": ["resized grad_output 2", "contiguous grad_output"],
    "_upsample_bicubic2d_aa_backward": ["resized grad_output 2", "contiguous grad_output"],
    "grid_sampler_2d_backward": ["sampled grad_output 2"],
    "grid_sampler_3d_backward": ["sampled grad_output 3"],
    "reflection_pad3d_backward": ["padded grad_output 3", "contiguous grad_output self"],
    "replication_pad3d_backward": ["padded grad_output 3", "contiguous grad_output self"],
    "_weight_norm": ["normed v g", "contiguous v g"],
    "_weight_norm_interface": ["normed v g", "contiguous v g"],
    "_weight_norm_interface_backward": [
        "normed saved_v saved_g saved_norms", "same grad_w saved_v", "kin grad_w saved_v",
        "contiguous grad_w saved_v saved_g saved_norms",
    ],
    "lu_solve": ["pivots LU_data LU_pivots", "contiguous LU_pivots"],
    "linalg_lu_solve": ["pivots LU pivots", "contiguous pivots"],
    "lu_unpack": ["pivots LU_data LU_pivots", "contiguous LU_pivots"],
    "segment_reduce": ["unsafe in False", "reduce in sum mean max min prod", "segments", "contiguous lengths offsets"],
    "embedding_bag": ["mode in 0 1 2", "bags", "contiguous weight indices offsets per_sample_weights"],
    "ctc_loss": ["aligned", "contiguous targets"],
    "multi_margin_loss": ["filled self target"],
    "multilabel_margin_loss": ["filled self target"],
    "rrelu": ["training in False"],
    "hash_tensor": ["mode in 0"],
    "aten.histogram.bin_ct": ["bins from 1 to 1048576"],
    "histc": ["bins from 1 to 1048576"],
    **{f"special_{name}": ["degrees n 4096"] for name in (
        "chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v", "chebyshev_polynomial_w",
        "hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p",
        "shifted_chebyshev_polynomial_t", "shifted_chebyshev_polynomial_u", "shifted_chebyshev_polynomial_v",
        "shifted_chebyshev_polynomial_w",
    )},
    "_adaptive_avg_pool2d_backward": [
        "leading grad_output self 2", "planes self 2", "kin grad_output self", "contiguous grad_output self",
    ],
    "_softmax_backward_data": ["same grad_output output"],
    "_log_softmax_backward_data": ["same grad_output output"],
    "nll_loss_backward": ["values target 0 self.-1 ignore_index"],
    "nll_loss2d_backward": ["values target 0 self.1 ignore_index"],
    "smooth_l1_loss_backward": ["floats grad_output self target"],
    "reflection_pad1d_backward": ["padded grad_output 1", "contiguous grad_output self"],
    "reflection_pad2d_backward": ["padded grad_output 2", "contiguous grad_output self"],
    "replication_pad1d_backward": ["padded grad_output 1", "contiguous grad_output self"],
    "replication_pad2d_backward": ["padded grad_output 2", "contiguous grad_output self"],
    "native_layer_norm_backward": ["outer mean rstd", "same grad_out input", "floats input grad_out mean rstd",
                                   "contiguous grad_out input mean rstd weight bias"],
    "unfold_backward": ["unfolded grad_in"],
    "native_group_norm": ["groups", "contiguous input weight bias"],
    "native_group_norm_backward": [
        "groups mean rstd", "same grad_out input", "contiguous grad_out input mean rstd weight",
    ],
    "batch_norm": ["unwritten training"],
    "instance_norm": ["unwritten use_input_stats"],
    "aten._native_batch_norm_legit.no_stats": [
        "training in True", "length weight input 1", "length bias input 1", "contiguous weight bias",
    ],
    "_native_batch_norm_legit_functional": _STATISTICS,
    "_native_batch_norm_legit_no_training": _STATISTICS,
    "native_batch_norm_backward": [
        "length weight input 1", "statistics train", "same grad_out input",
        "floats input grad_out weight running_mean running_var save_mean save_invstd",
        "contiguous grad_out input weight running_mean running_var save_mean save_invstd",
    ],
    "_fft_r2c": ["fourier"],
    "_fft_c2c": ["fourier"],
    "_fft_c2r": ["fourier"],
    "_cdist_backward": ["distances cdist grad", "kin x1 x2 grad cdist"],
    "median": ["contiguous self"],
    "nanmedian": ["contiguous self"],
    "aten.tensor_split.sections": ["sections from 1 to 65536"],
    "hsplit": ["sections from 1 to 65536"],
    "vsplit": ["sections from 1 to 65536"],
    "dsplit": ["sections from 1 to 65536"],
    "_scaled_dot_product_flash_attention_for_cpu": ["attention", "kin query key value", "contiguous attn_mask"],
    "avg_pool2d_backward": ["leading grad_output self 2"],
    "avg_pool3d_backward": ["leading grad_output self 3"],
    "_scaled_dot_product_flash_attention_for_cpu_backward": [
        "attention out grad_out", "kin query key value out grad_out", "contiguous attn_mask",
    ],
    "binary_cross_entropy": ["same self target"],
    "binary_cross_entropy_backward": ["same self target"],
    "scaled_dot_product_attention": ["keys"],
    "aten.lstm.input": ["recurrent 4"],
    "aten.gru.input": ["recurrent 3"],
    "aten.rnn_tanh.input": ["recurrent 1"],
    "aten.rnn_relu.input": ["recurrent 1"],
}  # fmt: skip

DATA_SIZE = {
    "nonzero",
    "argwhere",
    "nonzero_numpy",
    "masked_select",
    "index",
    "_unsafe_index",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "aten.repeat_interleave.Tensor",
    "aten.repeat_interleave.self_Tensor",
    "one_hot",
    "linalg_lstsq",
}
"""Ops whose result has a size that depends on data, in some of their forms; bases or whole names."""

NO_PLACE = re.compile("generator|[dD]imname|names|named")
"""In the names of overloads that take a generator or named dimensions, which some versions of torch print as texts."""

RANDOM = {"scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"}
"""Ops that draw random numbers in some of their forms without torch's tag saying so."""

NUMBERS = {"floor_divide", "true_divide", "divide", "multiply", "subtract"}
"""Ops that take a number for a tensor although torch does not tag them pointwise."""

SLOW = """
_native_batch_norm_legit.no_stats _native_batch_norm_legit_no_training _unsafe_index.Tensor _unsafe_index_put
_unsafe_masked_index _unsafe_masked_index_put_accumulate _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec
_upsample_lanczos2d_aa.vec _upsample_nearest_exact3d.vec add.Scalar addmm.dtype all.dims arange.start_step
baddbmm.dtype bernoulli.Tensor binary_cross_entropy binary_cross_entropy_with_logits bmm.dtype conv2d.padding
conv3d.padding conv_transpose1d conv_transpose3d.input cosine_embedding_loss cross_entropy_loss ctc_loss.IntList
ctc_loss.Tensor div.Scalar divide.Scalar floor_divide.Scalar hinge_embedding_loss huber_loss index_fill.int_Tensor
index_put kl_div l1_loss linalg_cond.p_str linalg_lstsq linalg_matrix_rank.atol_rtol_float linalg_pinv.atol_rtol_float
margin_ranking_loss mm.dtype mse_loss mul.Scalar multi_margin_loss multilabel_margin_loss multiply.Scalar
narrow.Tensor nll_loss nll_loss2d nll_loss_nd norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype
norm.ScalarOpt_dtype randint randint.low reflection_pad3d rnn_relu.input rnn_relu_cell smooth_l1_loss soft_margin_loss
std std_mean stft stft.center sub.Scalar subtract.Scalar to.dtype_layout triplet_margin_loss true_divide.Scalar
upsample_nearest3d.vec upsample_trilinear3d.vec var var_mean
"""
"""Ops whose short form is another overload, or other code: tests/plan/test_kernels.py finds them."""

KINDS = {
    "Tensor": "Tensor", "Tensor?": "Tensor?", "Tensor[]": "Tensor[]", "Tensor?[]": "Tensor?[]",
    "Scalar": "Scalar", "Scalar?": "Scalar?", "Scalar[]": "Scalar[]", "float": "float", "float?": "float?",
    "float[]": "float[]", "float[]?": "float[]?", "bool": "bool", "bool?": "bool?", "str": "str", "str?": "str?",
    "ScalarType": "dtype", "ScalarType?": "dtype?", "MemoryFormat": "format", "MemoryFormat?": "format?",
    "Layout?": "none", "Device?": "none", "Generator?": "none",
}  # fmt: skip


def kind(text: str, name: str) -> str | None:
    """Our name of a schema's type, or None where a plan can not hold it."""
    if name == "pin_memory":
        return "none"
    match = re.fullmatch(r"(?:Sym)?[iI]nt(\[\d*\])?(\?)?", text)
    if match:
        return "int" + ("[]" if match[1] else "") + (match[2] or "")
    match = re.fullmatch(r"bool\[\d*\]", text)
    return "bool[]" if match else KINDS.get(text)


def parameters(schema: str) -> Iterator[tuple[str, str, str]]:
    """Type, name and default of each argument; ``("*", "", "")`` where keywords begin."""
    inner = schema[schema.index("(") + 1 : schema.rindex(") ->")]
    for part in re.split(r", (?![^\[]*\])", inner) if inner else []:
        type_, _, rest = part.partition(" ")
        name, _, default = rest.partition("=")
        yield type_, name, default


def row(schema: str) -> tuple[str, str] | None:
    """Arguments and results of a functional schema as the table writes them."""
    if "!" in schema:
        return None
    schema = re.sub(r"\([a-z](?: -> \*)?(?:\|[a-z])*\)", "", schema).replace('"', "")
    args = []
    for type_, name, default in parameters(schema):
        ours = "*" if type_ == "*" else kind(type_, name)
        if ours is None:
            return None
        args.append("*" if ours == "*" else f"{ours} {name}" + (f"={default}" if default else ""))
    returns = schema[schema.rindex("->") + 2 :].strip("() ")
    kinds = [r.split(" ")[0] for r in returns.split(", ")]
    if not all(k in ("Tensor", "Tensor[]", "Scalar") for k in kinds):
        return None
    return ", ".join(args), ", ".join(kinds)


def name_of(schema: torch._C.FunctionSchema) -> str:
    """What a graph calls this overload."""
    return schema.name.replace("::", ".") + ("." + schema.overload_name if schema.overload_name else "")


def marks() -> dict[str, str]:
    """Op -> 12 hex digits of SHA-256 of its schema as torch prints it: another schema is another op to judge."""
    schemas = torch._C._jit_get_all_schemas()
    return {name_of(s): hashlib.sha256(str(s).encode()).hexdigest()[:12] for s in schemas}


def table() -> dict[str, tuple[str, ...]]:
    """Op -> (arguments, results, contract, flags)."""
    allow = set(re.sub(r"(?m)^[a-z, ]+:", "", ALLOW).split())
    rows = {}
    for schema in torch._C._jit_get_all_schemas():
        base = schema.name.removeprefix("aten::")
        name = name_of(schema)
        if (
            not schema.name.startswith("aten::")
            or base not in allow
            or name in DENY
            or NO_PLACE.search(schema.overload_name)
        ):
            continue
        made = row(str(schema))
        if made and ("Tensor" in made[0] or "Tensor" in made[1]):
            op = getattr(getattr(torch.ops.aten, base), schema.overload_name or "default")
            tags = {str(t) for t in op.tags}
            flags = ["numbers"] if "Tag.pointwise" in tags or base in NUMBERS else []
            flags += ["random"] if "Tag.nondeterministic_seeded" in tags or base in RANDOM else []
            flags += ["data_size"] if base in DATA_SIZE or name in DATA_SIZE else []
            rows[name] = (*made, "; ".join(contract(base, name, made[0])), " ".join(flags), fast(name, made[0]))
    missing = allow - {n.split(".")[1] for n in rows}
    missing -= {n.split(".")[1] for n in DENY}
    if missing:
        print("not in this torch, or not functional:", *sorted(missing), file=sys.stderr)
    return dict(sorted(rows.items()))


def fast(name: str, args: str) -> str:
    """Where the fastest callable of an op is: a builtin function of torch, or a tensor's method."""
    base = name.split(".")[1]
    if name.removeprefix("aten.") in SLOW.split():
        return ""
    if isinstance(getattr(torch, base, None), type(len)):
        return f"torch.{base}"
    if args.startswith("Tensor self") and type(vars(torch._C.TensorBase).get(base)).__name__ == "method_descriptor":
        return f".{base}"
    places = {"torch._C._nn": torch._C._nn, "torch._C._linalg": torch._C._linalg}
    places |= {"torch._C._fft": torch._C._fft, "torch._C._special": torch._C._special}
    found = (path for path, place in places.items() if isinstance(getattr(place, base, None), type(len)))
    return next((f"{path}.{base}" for path in found), "")


def contract(base: str, name: str, args: str) -> list[str]:
    kinds = {a.split(" ")[1].split("=")[0]: a[:3] for a in args.split(", ") if " " in a}
    wanted = [(c, "int" if c[-1].isdigit() else "str") for c in CONTRACTS[""]]
    general = [c for c, kind in wanted if kinds.get(c.split(" ")[0]) == kind]
    return general + CONTRACTS.get(name, []) + (CONTRACTS.get(base, []) if base else [])


def source(rows: dict[str, tuple[str, ...]]) -> str:
    """The text of fedq/plan/ops.py."""
    lines = [f"    {name!r}: {cells!r},".replace("'", '"') for name, cells in rows.items()]
    mark = marks()
    why = WHY | DENY
    return "\n".join([
        '"""The op table as data: written by tools/make_ops.py, not by hand."""',
        "# ruff: noqa: E501",
        "# fmt: off",
        "# the version that the rows were judged for; a device serves no plan with another",
        f'TORCH = "{version()}"',
        "# op -> (arguments, results, contract, flags, fastest callable)",
        "OPS: dict[str, tuple[str, str, str, str, str]] = {",
        *lines,
        "}",
        "# op -> the first digits of SHA-256 of its schema",
        "SCHEMAS: dict[str, str] = {",
        *(f'    "{name}": "{mark[name]}",' for name in rows),
        "}",
        "# base name or op -> why it is not allowed",
        "DENIED: dict[str, str] = {",
        *(f'    "{name}": "{text}",' for name, text in sorted(why.items())),
        "}",
        "",
    ])  # fmt: skip


def version() -> str:
    """Of the torch that is installed, without local parts such as ``+cpu``."""
    return str(torch.__version__).partition("+")[0]


def main() -> None:
    judged = runpy.run_path(str(TABLE))["TORCH"]
    if judged != version():
        sys.exit(f"{TABLE}: judged for torch {judged}, torch {version()} is installed: make ops")
    text = source(table())
    if "--check" in sys.argv:
        sys.exit(0 if TABLE.read_text() == text else "fedq/plan/ops.py is not what tools/make_ops.py writes")
    TABLE.write_text(text)
    print(f"{TABLE}: {text.count(chr(10))} lines, {len(text)} bytes")


if __name__ == "__main__":
    main()
