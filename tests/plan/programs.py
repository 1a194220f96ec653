"""Ordinary functions and models, and the calls of ops that they make.

One table for several tests: every op they use must be allowed, replay as eager, run exactly itself
through its fastest callable, and survive its arguments being bent.
"""
# ruff: noqa: E501

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Interpreter
from torch.fx.experimental.proxy_tensor import make_fx

I4 = (0, 2, 1, 3)


def index():
    return torch.tensor(I4)


def floats():
    return torch.linspace(-2.0, 2.0, 32).view(4, 8)


def image():
    return torch.linspace(-1.0, 1.0, 392).view(2, 1, 14, 14)


def sequence():
    return torch.linspace(-1.0, 1.0, 48).view(2, 3, 8)


FUNCTIONS = {
    "arithmetic": lambda a: (a - 1) / 2 * a**2 % 3 // 1 + (-a) - (1 - a) + 1 / (a + 10),
    "powers": lambda a: (a.abs() + 1).log().sqrt().rsqrt().exp().sin().cos().tan().tanh().erf().reciprocal(),
    "rounding": lambda a: a.floor() + a.ceil() + a.round() + a.trunc() + a.sign() + a.frac() + a.square() + a.neg(),
    "logs": lambda a: (a.log1p(), a.expm1(), a.log2(), a.log10(), a.exp2(), a.sinh(), a.cosh(), a.asinh(), a.erfc(),
                       a.lgamma(), a.digamma(), a.sigmoid(), a.logit(0.1), a.sinc(), a.atan(), a.acos(), a.asin(),
                       a.acosh(), a.atanh(), a.erfinv(), a.i0(), a.deg2rad(), a.rad2deg(), a.positive(), a.signbit()),
    "pairs": lambda a: (torch.atan2(a, a + 1), torch.maximum(a, a + 1), torch.minimum(a, a), torch.fmod(a, 2),
                        torch.remainder(a, 2), torch.hypot(a, a), torch.lerp(a, a + 1, 0.5), torch.lerp(a, a, a),
                        torch.logaddexp(a, a), torch.xlogy(a, a), torch.addcmul(a, a, a), torch.addcdiv(a, a, a),
                        torch.copysign(a, a), torch.nan_to_num(a), torch.pow(2, a), torch.pow(a, a), torch.fmax(a, a),
                        torch.fmin(a, a), torch.nextafter(a, a), torch.heaviside(a, a), torch.logaddexp2(a, a),
                        torch.float_power(a, 2), a.ldexp(a), torch.rsub(a, 1), a.true_divide(2), a.sub(a, alpha=2),
                        a.add(a, alpha=2), a.subtract(a), a.multiply(a), a.divide(a)),
    "comparing": lambda a: ((a > 0) & (a < 1) | (a == 2) ^ (a != 3)) & (a >= 0) & (a <= 1) & ~(a > a) & torch.isnan(a)
        & torch.isinf(a) & torch.isfinite(a) & torch.logical_and(a, a) & torch.logical_or(a, a) & (a > a + 1)
        & torch.logical_not(a) & torch.logical_xor(a, a) & (a == a) & (a != a) & (a < a) & (a <= a) & (a >= a)
        & torch.isclose(a, a) & torch.isposinf(a) & torch.isneginf(a) & torch.isin(a, a),
    "choosing": lambda a: (torch.where(a > 0, a, torch.zeros_like(a)), torch.where(a > 0, 1.0, 0.0),
                           torch.where(a > 0, a, 0.0), a.masked_fill(a > 0, 1.0), torch.where(a > 0, 1.0, a),
                           a.masked_fill(a > 0, torch.tensor(1.0))),
    "clamping": lambda a: (a.clamp(0, 1), a.clamp(min=0), a.clamp_min(0), a.clamp_max(2), torch.clamp(a, a, a + 1),
                           a.relu(), F.relu6(a), F.hardtanh(a), a.clip(0, 1), a.clamp_min(a), a.clamp_max(a)),
    "reducing": lambda a: (a.sum(), a.sum(0), a.mean(), a.mean(1, keepdim=True), a.std(), a.std(0), a.var(0),
                           a.var(0, unbiased=False), a.prod(), a.prod(1), a.max(), a.max(1), a.min(0), a.amax(1),
                           a.min(), a.amin(1), a.argmax(), a.argmin(1), a.norm(), a.norm(dim=1), a.logsumexp(1),
                           torch.linalg.vector_norm(a), torch.linalg.norm(a), a.any(), a.all(), (a > 0).any(1),
                           (a > 0).all(1), a.median(), a.median(1), a.nansum(), a.nanmean(), torch.std_mean(a),
                           torch.var_mean(a, 0), torch.aminmax(a), torch.quantile(a, 0.5), a.count_nonzero(),
                           a.mode(1), a.kthvalue(1, 1), torch.linalg.matrix_norm(a), a.nanmedian(), a.nanmedian(1),
                           a.sum(0, dtype=torch.float64), a.max(a), a.min(a), a.count_nonzero(0), a.trace(),
                           torch.quantile(a, torch.tensor([0.5])), a.sum((0, 1), keepdim=True), a.any((0, 1)),
                           torch.linalg.matrix_norm(a, 2), torch.linalg.norm(a, "fro"), a.nanquantile(0.5)),
    "running": lambda a: (a.cumsum(0), a.cumprod(1), a.cummax(0), a.cummin(0), a.logcumsumexp(0), a.sort(), a.topk(2),
                          a.sort(dim=0, descending=True), a.argsort(), a.diff(), torch.sort(a, stable=True, dim=1),
                          torch.searchsorted(a[0], a), torch.bucketize(a, a[0]), torch.msort(a), torch.histc(a),
                          a.argsort(dim=1, stable=True)),
    "shapes": lambda a: (a.view(-1), a.reshape(a.shape[0] * 8), a.t(), a.transpose(0, 1), a.permute(1, 0), a.mT,
                         a.unsqueeze(0), a.squeeze(), a.unsqueeze(0).squeeze(0), a.flatten(), a.expand(2, *a.shape),
                         a.repeat(2, 1), torch.repeat_interleave(a, 2, 0), a[:2], a[:, 1:], a[0], a[..., None],
                         a[::2], a.narrow(1, 0, 2), a.select(0, 0), a.unflatten(1, (2, 4)), a.view_as(a),
                         a.squeeze((0, 1)), a.expand_as(a), a.swapaxes(0, 1), a.rot90(), a.unfold(1, 2, 2), a.ravel(),
                         torch.diag_embed(a), torch.block_diag(a, a), torch.atleast_3d(a), a.tile(2), a.diagonal(),
                         torch.diag(a[0]), a.tril(), a.triu(), torch.tril(a, 1), a.contiguous(), a.clone(), a.T,
                         a.movedim(0, 1), a.flip([0]), a.roll(1, 0), a.fliplr(), a.flipud(), a.broadcast_to(4, 8),
                         a.reshape_as(a), a.swapdims(0, 1), a.moveaxis(0, 1), a.adjoint(), a.mH),
    "lists": lambda a: (a.split(3, 1), a.chunk(2, 1), a.unbind(1), torch.split(a, [3, 5], 1), a.hsplit(2),
                        a.tensor_split(2, 1), a.vsplit(2), torch.broadcast_tensors(a, a[0]), a.tensor_split((1, 2), 1),
                        torch.meshgrid(a[0], a[0], indexing="ij")),
    "joining": lambda a: (torch.cat([a, a]), torch.stack([a, a], 1), torch.hstack([a, a]), torch.vstack([a, a]),
                          torch.concat([a, a], 1), torch.dstack([a, a]), torch.cartesian_prod(a[0], a[0]),
                          torch.column_stack([a, a])),
    "indexing": lambda a: (a[index()], a[:, index()], a[index(), index()], a.gather(1, index()[:, None]),
                           a.index_select(0, index()), a.take(index()), a.scatter(1, index()[:, None], 1.0),
                           torch.take_along_dim(a, index()[:, None], 1), a.scatter(1, index()[:, None], a),
                           a.scatter_add(1, index()[:, None], a), a.index_add(0, index(), a), F.one_hot(index(), 4),
                           a.index_copy(0, index(), a), a.index_fill(0, index(), 1.0), a.index_put((index(),), a),
                           torch.scatter_reduce(a, 1, index()[:, None], a, "sum"), torch.tril_indices(3, 3),
                           a.index_put((index(),), a, accumulate=True), torch.select_scatter(a, a[0], 0, 0),
                           torch.slice_scatter(a, a[:1], 0, 0, 1), torch.diagonal_scatter(a, a.diagonal()),
                           a.masked_scatter(a > 0, a), a.index_reduce(0, index(), a, "amax"), torch.triu_indices(3, 3),
                           torch.scatter(a, 1, index()[:, None], a, reduce="add"), a.put(index(), a[0, :4])),
    "making": lambda a: (torch.arange(a.shape[0]), torch.arange(1, 5), torch.arange(0, 1, 0.1), torch.zeros(3),
                         torch.ones(2, 3), torch.full((2,), 3.0), torch.zeros_like(a), torch.ones_like(a),
                         torch.full_like(a, 2.0), torch.eye(3), torch.linspace(0, 1, 5), a.new_zeros(3), a.new_ones(3),
                         a.new_full((2,), 1.0), torch.eye(2, 3), torch.logspace(0, 1, 3), torch.tensor([1.0, 2.0]),
                         torch.scalar_tensor(2.0), torch.hann_window(4), torch.hamming_window(4),
                         torch.zeros(a.shape[0], dtype=torch.int64), torch.fft.fftfreq(4)),
    "random": lambda a: (torch.rand(3), torch.randn(3), torch.rand_like(a), torch.randn_like(a), torch.randperm(5),
                         torch.randint(0, 5, (3,)), torch.randint(5, (3,)), F.dropout(a, 0.5, True),
                         torch.bernoulli(a.sigmoid()), torch.multinomial(a.softmax(-1), 2), torch.randint_like(a, 5),
                         torch.normal(a, 1.0), torch.normal(0.0, 1.0, (3,)), torch.bernoulli(a, 0.3),
                         torch.poisson(a.abs()), torch.randint_like(a, 1, 5), F.alpha_dropout(a, 0.5, True),
                         F.dropout2d(a[None, :], 0.5, True), torch.normal(a, a.abs()), torch.normal(1.0, a.abs())),
    "products": lambda a: (a @ a.T, torch.mm(a, a.T), torch.bmm(a[None], a.T[None]), torch.matmul(a[None], a.T),
                           a @ a[0], torch.mv(a, a[0]), torch.dot(a[0], a[0]), torch.einsum("ij,kj->ik", a, a),
                           torch.addmm(torch.zeros(4), a, a.T), torch.outer(a[0], a[0]), torch.kron(a, a),
                           torch.baddbmm(torch.zeros(1, 4, 4), a[None], a.T[None]), torch.tensordot(a, a.T, 1),
                           torch.inner(a, a), torch.linalg.multi_dot([a, a.T, a]), torch.addmv(a[:, 0], a, a[0]),
                           torch.addr(torch.zeros(4, 8), a[:, 0], a[0]), torch.vdot(a[0], a[0]), F.linear(a, a, a[:, 0]),
                           torch.addbmm(torch.zeros(4, 4), a[None], a.T[None]), torch.linalg.vecdot(a, a),
                           torch.cross(a[:, :3], a[:, :3], dim=1), torch.cov(a), torch.corrcoef(a),
                           F.bilinear(a, a, torch.ones(3, 8, 8)), torch.linalg.cross(a[:, :3], a[:, :3])),
    "algebra": lambda a: (lambda m: (torch.linalg.inv(m), torch.linalg.det(m), torch.linalg.solve(m, a),
                                     torch.linalg.qr(a), torch.linalg.svd(a), torch.linalg.eigh(m), m.logdet(),
                                     torch.linalg.cholesky(m), torch.linalg.slogdet(m), torch.linalg.matrix_power(m, 2),
                                     torch.linalg.matrix_exp(m / 100), torch.linalg.svdvals(a), m.inverse(),
                                     torch.linalg.eigvalsh(m), torch.linalg.inv_ex(m), torch.linalg.cholesky_ex(m),
                                     torch.linalg.pinv(m), torch.cholesky_solve(a, torch.linalg.cholesky(m)),
                                     torch.linalg.solve_triangular(m, a, upper=True))
                         )(a @ a.T + 30 * torch.eye(4)),
    "dtypes": lambda a: (a.float(), a.double(), a.int(), a.long(), a.bool(), a.half(), a.to(torch.float64), a.bfloat16(),
                         a.type_as(a.double()), a.to(torch.complex64), torch.complex(a, a), torch.angle(a), a.detach(),
                         torch.view_as_real(torch.complex(a, a)), torch.real(torch.complex(a, a)), torch.polar(a, a),
                         torch.imag(torch.complex(a, a)), torch.conj(torch.complex(a, a)), a.view(torch.int32),
                         torch.view_as_complex(a.view(4, 4, 2)), torch.resolve_conj(torch.complex(a, a)),
                         a.to(memory_format=torch.contiguous_format)),
    "fourier": lambda a: (torch.fft.fft(a), torch.fft.ifft(torch.fft.fft(a)), torch.fft.rfft(a), torch.fft.fft2(a),
                          torch.fft.irfft(torch.fft.rfft(a)), torch.fft.fftshift(a), torch.fft.rfft2(a),
                          torch.fft.irfft2(torch.fft.rfft2(a))),
    "integers": lambda a: (lambda b: (b + 1, b // 2, b % 2, b / 2, b << 1, b >> 1, b & 1, b | 1, b ^ 1, ~b, -b, b * b,
                                      b**2, b.sum(), b == b, b.bitwise_and(b), b.gcd(b), b.div(2, rounding_mode="floor"),
                                      b.div(2, rounding_mode="trunc"), b.abs(), b.clamp(0, 3), b.fmod(2), b.lcm(b),
                                      b.remainder(2), 2 ** b.abs(), b.true_divide(2), 1 - b, 10 // (b + 100),
                                      b.bitwise_or(b), b.bitwise_xor(b), b.div(b + 9, rounding_mode="trunc"),
                                      b.bitwise_left_shift(b.abs()), b.floor_divide(b + 9)))(a.long()),
    "layers": lambda a: (F.softmax(a, -1), F.log_softmax(a, -1), F.layer_norm(a, (8,)), F.gelu(a), F.normalize(a),
                         F.pad(a, (1, 1)), F.pad(a[None], (1, 1), mode="reflect"), F.softmin(a, -1), F.unfold(a[None, None], 2),
                         F.pad(a[None], (1, 1), mode="replicate"), F.pad(a[None], (1, 1), mode="circular"),
                         F.interpolate(a[None], scale_factor=2), F.cosine_similarity(a, a), F.rms_norm(a, (8,)),
                         F.fold(torch.ones(1, 4, 21), (4, 8), 2), F.max_pool1d(a[None], 2), F.avg_pool1d(a[None], 2),
                         F.grid_sample(a[None, None], torch.zeros(1, 2, 2, 2), align_corners=False),
                         F.instance_norm(a[None]), F.group_norm(a[None], 2), F.adaptive_avg_pool1d(a[None], 2),
                         F.adaptive_max_pool1d(a[None], 2), F.pixel_unshuffle(a[None], 2), F.embedding(index(), a),
                         F.affine_grid(torch.zeros(1, 2, 3), (1, 1, 4, 4), align_corners=False), F.prelu(a, a[0, :1]),
                         F.scaled_dot_product_attention(a[None], a[None], a[None]), F.glu(a), F.logsigmoid(a),
                         F.cosine_embedding_loss(a, a, torch.ones(4)), F.channel_shuffle(a[None, :, :, None], 2)),
    "sizes": lambda a: (a.sum(0) / a.shape[0], a * a.shape[0], torch.arange(a.shape[0] * 2 - 1), a.reshape(a.numel())),
}  # fmt: skip

ACTIVATIONS = (nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.LeakyReLU(), nn.Softplus(), nn.Hardtanh(),
               nn.ReLU6(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.PReLU(), nn.CELU(), nn.SELU(), nn.GLU(),
               nn.LogSigmoid(), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Softsign(), nn.Threshold(0.1, 0.0), nn.Hardshrink(),
               nn.Softshrink(), nn.Tanhshrink(), nn.GELU("tanh"), nn.ReLU())  # fmt: skip


def models():
    """Name -> (module, its inputs); the weights are random."""
    x, img, seq = floats(), image(), sequence()
    made = {type(act).__name__: (nn.Sequential(nn.Linear(8, 8), act), (x,)) for act in ACTIVATIONS}
    made |= {
        "mlp": (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), (x,)),
        "cnn": (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1),
                              nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)), (img,)),
        "layernorm": (nn.LayerNorm(8), (x,)), "rmsnorm": (nn.RMSNorm(8), (x,)),
        "groupnorm": (nn.GroupNorm(2, 8), (torch.randn(2, 8, 4),)), "instancenorm": (nn.InstanceNorm2d(1), (img,)),
        "batchnorm": (nn.BatchNorm1d(8).eval(), (x,)), "batchnorm2": (nn.BatchNorm2d(1).eval(), (img,)),
        "batchnorm3": (nn.BatchNorm1d(8, track_running_stats=False), (x,)),
        "conv1": (nn.Conv1d(8, 4, 3), (torch.randn(2, 8, 9),)), "conv3": (nn.Conv3d(1, 2, 2), (torch.randn(2, 1, 4, 4, 4),)),
        "same": (nn.Conv2d(1, 2, 3, padding="same"), (img,)), "deconv": (nn.ConvTranspose2d(1, 2, 3), (img,)),
        "adaptive": (nn.AdaptiveAvgPool2d(3), (img,)), "adaptive1": (nn.AdaptiveAvgPool2d(1), (img,)),
        "adaptivemax": (nn.AdaptiveMaxPool2d(2), (img,)), "nearest": (nn.Upsample(scale_factor=2), (img,)),
        "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (img,)), "dropout": (nn.Dropout(0.5), (x,)),
        "dropout2": (nn.Dropout2d(0.5), (img,)), "zeropad": (nn.ZeroPad2d(1), (img,)), "unfold": (nn.Unfold(2), (img,)),
        "reflect": (nn.ReflectionPad2d(1), (img,)), "replicate": (nn.ReplicationPad2d(1), (img,)),
        "reflect1": (nn.ReflectionPad1d(1), (seq,)), "replicate1": (nn.ReplicationPad1d(1), (seq,)),
        "shuffle": (nn.PixelShuffle(2), (torch.randn(2, 4, 3, 3),)), "lp": (nn.LPPool2d(2, 2), (img,)),
        "maxpool1": (nn.MaxPool1d(2), (seq,)), "maxpool3": (nn.MaxPool3d(2), (torch.randn(1, 4, 4, 4),)),
        "avgpool3": (nn.AvgPool3d(2), (torch.randn(1, 4, 4, 4),)),
        "rnn": (First(nn.RNN(8, 6, batch_first=True)), (seq,)), "gru": (First(nn.GRU(8, 6, batch_first=True)), (seq,)),
        "lstm": (First(nn.LSTM(8, 6, batch_first=True, bidirectional=True)), (seq,)),
        "lstmcell": (First(nn.LSTMCell(8, 6)), (x,)), "grucell": (nn.GRUCell(8, 6), (x,)),
        "rnncell": (nn.RNNCell(8, 6), (x,)),
        "transformer": (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1), (seq,)),
        "attention": (First(nn.MultiheadAttention(8, 2, batch_first=True)), (seq, seq, seq)),
        "decoder": (nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval(), (seq, seq)),
        "embedding": (nn.Embedding(10, 4), (torch.arange(6).view(2, 3),)), "pairs": (nn.Bilinear(8, 8, 3), (x, x)),
    }  # fmt: skip
    return made


class First(nn.Module):
    """The first of what a module gives."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)[0]


LOSSES = {
    "mse": lambda a, y: F.mse_loss(a, y), "l1": lambda a, y: F.l1_loss(a, y), "huber": lambda a, y: F.huber_loss(a, y),
    "smooth": lambda a, y: F.smooth_l1_loss(a, y), "entropy": lambda a, y: F.cross_entropy(a, index()),
    "smoothing": lambda a, y: F.cross_entropy(a, index(), label_smoothing=0.1, weight=torch.ones(8)),
    "soft": lambda a, y: F.cross_entropy(a, y.softmax(-1)), "nll": lambda a, y: F.nll_loss(a.log_softmax(-1), index()),
    "nll2": lambda a, y: F.nll_loss(a.view(1, 4, 2, 4), torch.zeros(1, 2, 4, dtype=torch.int64)),
    "bce": lambda a, y: F.binary_cross_entropy(a.sigmoid(), y.sigmoid()), "norm": lambda a, y: F.normalize(a),
    "logits": lambda a, y: F.binary_cross_entropy_with_logits(a, y.sigmoid()), "cos": lambda a, y: F.cosine_similarity(a, y),
    "kl": lambda a, y: F.kl_div(a.log_softmax(-1), y.softmax(-1)), "cdist": lambda a, y: torch.cdist(a, y),
    "margin": lambda a, y: F.margin_ranking_loss(a, y, torch.ones(4, 8)),
    "triplet": lambda a, y: F.triplet_margin_loss(a, y, y + 1), "poisson": lambda a, y: F.poisson_nll_loss(a, y.abs()),
    "softmargin": lambda a, y: F.soft_margin_loss(a, torch.ones(4, 8)), "pairwise": lambda a, y: F.pairwise_distance(a, y),
    "hinge": lambda a, y: F.hinge_embedding_loss(a, torch.ones(4, 8)), "pdist": lambda a, y: F.pdist(a),
    "attend": lambda a, y: F.scaled_dot_product_attention(a.view(1, 2, 2, 8), y.view(1, 2, 2, 8), y.view(1, 2, 2, 8),
                                                          is_causal=True),
    "attendmask": lambda a, y: F.scaled_dot_product_attention(a.view(1, 2, 2, 8), y.view(1, 2, 2, 8), y.view(1, 2, 2, 8),
                                                              attn_mask=torch.eye(2).bool()),
    "gather": lambda a, y: a.gather(1, index()[:, None]), "index": lambda a, y: a[index()], "select": lambda a, y: a[1],
    "slice": lambda a, y: a[1:3], "cumsum": lambda a, y: a.cumsum(0), "median": lambda a, y: a.median(1).values,
    "unfold": lambda a, y: a.unfold(1, 2, 2), "diagonal": lambda a, y: a.diagonal(), "take": lambda a, y: a.take(index()),
}  # fmt: skip


def gradient(fn, *params):
    """A function of its inputs that gives the gradient of fn's squares by inputs and parameters."""

    def run(*args):
        args = [a.detach().clone().requires_grad_() if a.is_floating_point() else a for a in args]
        wanted = [a for a in args if a.requires_grad] + [p for p in params if p.requires_grad]
        return torch.autograd.grad((fn(*args) ** 2).sum(), wanted, allow_unused=True)

    return run


def programs():
    """Name -> (function, inputs, whether it takes a gradient)."""
    torch.manual_seed(0)
    made = {name: (fn, (floats(),), False) for name, fn in FUNCTIONS.items()}
    for name, (model, inputs) in models().items():
        made[f"model {name}"] = (model, inputs, False)
        made[f"gradient of {name}"] = (gradient(model, *model.parameters()), inputs, True)
    for name, loss in LOSSES.items():
        made[f"loss {name}"] = (loss, (floats(), floats().flip(0)), False)
        made[f"gradient of loss {name}"] = (gradient(loss), (floats(), floats().flip(0)), True)
    return made


def direct():
    """(op, args, kwargs): calls that programs make of ops which recording for autograd takes apart."""
    torch.manual_seed(0)
    a, i, image3 = floats(), index(), torch.linspace(-1.0, 1.0, 256).view(2, 2, 4, 4, 4)
    m = a @ a.T + 30 * torch.eye(4)
    lu, pivots, _ = torch.linalg.lu_factor_ex(m)
    wide, wide_pivots, _ = torch.linalg.lu_factor_ex(a)
    picture = image3[:, :, 0]
    pooled, at = torch.nn.functional.max_pool2d(picture, 2, return_indices=True)
    pooled3, at3 = torch.nn.functional.max_pool3d(image3, 2, return_indices=True)
    most3, where3 = torch.nn.functional.adaptive_max_pool3d(image3, 2, return_indices=True)
    norms = a.norm(dim=1, keepdim=True)
    probs, words = torch.randn(6, 2, 5).log_softmax(-1), torch.tensor([[1, 2, 3], [4, 3, 2]])
    qr, tau = torch.geqrf(a.T.contiguous())
    wave, window = torch.linspace(-1.0, 1.0, 64), torch.hann_window(8)
    calls = [
        (f"{p}_polynomial_{q}{o}", (x, n), {})
        for p in ("chebyshev", "shifted_chebyshev")
        for q in "tuvw"
        for o, x, n in (("", a, i.expand(8, 4).T.float()), (".n_scalar", a, 3), (".x_scalar", 0.5, a))
    ]
    calls += [
        (f"{p}{o}", (x, n), {})
        for p in ("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p")
        for o, x, n in (("", a, i.expand(8, 4).T.float()), (".n_scalar", a, 3), (".x_scalar", 0.5, a))
    ]
    calls = [(f"special_{name}", args, named) for name, args, named in calls]
    calls += [
        ("lu_solve", (a, lu, pivots), {}), ("linalg_lu_solve", (lu, pivots, a), {}), ("lu_unpack", (lu, pivots), {}),
        ("linalg_lu_solve", (lu.expand(3, 4, 4), pivots.expand(3, 4), a), {"adjoint": True}),
        ("lu_unpack", (wide, wide_pivots), {}), ("linalg_lu", (a,), {}), ("linalg_lu_factor", (a,), {}),
        ("linalg_lu_factor_ex", (m,), {}), ("linalg_ldl_factor", (m,), {}), ("linalg_ldl_factor_ex", (m,), {}),
        ("_lu_with_info", (m,), {}), ("geqrf", (a,), {}), ("orgqr", (qr, tau), {}), ("ormqr", (qr, tau, a.T), {}),
        ("linalg_householder_product", (qr, tau), {}), ("triangular_solve", (a, m), {}), ("svd", (a,), {}),
        ("qr", (a,), {}), ("pinverse", (a,), {}), ("cholesky_inverse", (m,), {}), ("linalg_eig", (m,), {}),
        ("linalg_eigvals", (m,), {}),
        ("linalg_matrix_rank", (m, 0.1), {}), ("linalg_matrix_rank.atol_rtol_tensor", (m,), {}), ("linalg_cond", (m,), {}),
        ("linalg_tensorinv", (torch.eye(4).view(2, 2, 4) + 1, 2), {}), ("linalg_tensorsolve", (m, a[:, 0]), {}),
        ("linalg_vander", (a,), {}), ("vander", (a[0],), {}), ("linalg_diagonal", (m,), {}),
        ("max_unpool2d", (pooled, at, (4, 4)), {}), ("max_unpool3d", (pooled3, at3, (4, 4, 4), (2, 2, 2), (0, 0, 0)), {}),
        ("max_unpool2d", (pooled[0], at[0], (5, 4)), {}), ("put", (a, i, a[0, :4]), {}), ("put", (a, i, a[0, :4], True), {}),
        ("adaptive_max_pool3d", (image3, (2, 2, 2)), {}), ("max_pool1d_with_indices", (a[None], 2), {}),
        ("adaptive_max_pool3d_backward", (most3, image3, where3), {}),
        ("_adaptive_avg_pool3d_backward", (most3, image3), {}), ("affine_grid_generator_backward",
         (torch.ones(2, 4, 4, 2), (2, 2, 4, 4), False), {}),
        ("fractional_max_pool2d", (picture, (2, 2), (3, 3), torch.rand(2, 2, 2)), {}),
        ("fractional_max_pool3d", (image3, (2, 2, 2), (2, 2, 2), torch.rand(2, 2, 3)), {}),
        ("grid_sampler_2d_backward", (picture, picture, torch.rand(2, 4, 4, 2), 0, 0, False, (True, True)), {}),
        ("grid_sampler_3d_backward", (image3, image3, torch.rand(2, 4, 4, 4, 3), 0, 0, False, (True, True)), {}),
        ("reflection_pad3d_backward", (torch.ones(2, 2, 6, 6, 6), image3, (1, 1, 1, 1, 1, 1)), {}),
        ("replication_pad3d_backward", (torch.ones(2, 2, 6, 6, 6), image3, (1, 1, 1, 1, 1, 1)), {}),
        ("_weight_norm", (a, norms), {}), ("_weight_norm_interface", (a, norms), {}), ("norm_except_dim", (a,), {}),
        ("_weight_norm_interface", (a, a.norm(dim=0, keepdim=True), 1), {}),
        ("_weight_norm_interface_backward", (a, a, norms, norms, 0), {}),
        ("segment_reduce", (a, "sum"), {"lengths": torch.tensor([1, 3])}),
        ("segment_reduce", (a, "max"), {"offsets": torch.tensor([0, 1, 4])}),
        ("segment_reduce", (a, "mean"), {"lengths": torch.tensor([[4, 4]]).expand(4, 2), "axis": 1}),
        ("embedding_bag.padding_idx", (a, i, torch.tensor([0, 2]), False, 0, False, None, False, None), {}),
        ("embedding_bag.padding_idx", (a, i, torch.tensor([0, 2, 4]), False, 1, False, None, True, 2), {}),
        ("embedding_bag", (a, i, torch.tensor([0, 3]), False, 2), {}),
        ("embedding_bag", (a, i, torch.tensor([0, 3]), False, 0, False, a[0, :4]), {}),
        ("ctc_loss.IntList", (probs, words, (6, 5), (3, 2)), {}), ("ctc_loss.IntList", (probs, words[0], (6, 5), (1, 2), 0, 0), {}),
        ("ctc_loss.Tensor", (probs, words, torch.tensor([6, 5]), torch.tensor([3, 2])), {}),
        ("multi_margin_loss", (a, i), {}), ("multi_margin_loss", (a[0], i[0]), {}), ("rrelu", (a,), {}),
        ("multilabel_margin_loss", (a, torch.cat([i, i - 1]).expand(4, 8)), {}),
        ("histogram.bin_ct", (a, 4), {}), ("histogram.bins_tensor", (a, wave), {}), ("hash_tensor", (a,), {}),
        ("stft.center", (wave, 8, 2, 8, window), {"return_complex": True}),
        ("stft", (wave, 8, 2, 8, window), {"return_complex": True}),
        ("istft", (torch.stft(wave, 8, window=window, return_complex=True), 8, None, None, window), {}), ("renorm", (a, 2, 0, 1.0), {}),
        ("pad_sequence", ([a, a[:2]], True), {}), ("gradient.scalarint", (a,), {}), ("combinations", (a[0],), {}),
        ("gradient.tensorarray", (a,), {"spacing": [a[0]], "dim": [1]}), ("trapezoid.x", (a, a), {}), ("trapezoid.dx", (a,), {}),
        ("trapz.x", (a, a), {}), ("trapz.dx", (a,), {}), ("cumulative_trapezoid.x", (a, a), {}),
        ("cumulative_trapezoid.dx", (a,), {}), ("unique_dim", (a, 0), {}), ("_unique2", (a, True, True, True), {}),
        ("unique_consecutive", (a,), {}), ("nonzero_static", (a,), {"size": 5}), ("nonzero_numpy", (a,), {}),
        ("masked_scatter_backward", (a, a > 0, (4, 8)), {}), ("mvlgamma", (a + 9, 2), {}), ("isreal", (a,), {}),
        ("fft_hfftn", (a,), {}), ("fft_ihfftn", (a,), {}), ("fft_rfftn", (a,), {}), ("fft_irfftn", (a,), {}),
        ("fft_hfft2", (a,), {}), ("fft_ihfft2", (a,), {}), ("bartlett_window", (5,), {}), ("blackman_window", (5,), {}),
        ("kaiser_window", (5,), {}), ("random", (a,), {}), ("random.from", (a, 1, 5), {}), ("random.to", (a, 5), {}),
        ("sum_to_size", (a, (1, 8)), {}), ("expand_copy", (a, (2, 4, 8)), {}), ("unfold_copy", (a, 1, 2, 2), {}),
        ("split_copy.Tensor", (a, 2), {}), ("split_with_sizes_copy", (a, (1, 3)), {}), ("unbind_copy.int", (a,), {}),
        ("view_copy", (a, (8, 4)), {}), ("diagonal_copy", (a,), {}), ("select_copy.int", (a, 0, 1), {}),
        ("slice_copy.Tensor", (a, 0, 1, 3), {}), ("narrow_copy", (a, 0, 1, 2), {}), ("diagflat", (a,), {}),
        ("view_as_complex_copy", (a.view(4, 4, 2),), {}), ("_is_all_true", (a > 0,), {}), ("frobenius_norm.dim", (a, (0, 1)), {}),
        ("nuclear_norm", (a,), {}), ("special_ndtr", (a,), {}), ("squeeze_copy", (a,), {}),
        ("_unsafe_index.Tensor", (a, [None, i]), {}),
        ("_unsafe_index_put", (a, [None, i], a[:, :4], True), {}), ("index_put", (a, [None, i], a[:, :4]), {}),
        ("_adaptive_avg_pool3d", (image3, (2, 2, 2)), {}), ("adaptive_avg_pool3d", (image3, (2, 2, 2)), {}),
        ("_is_any_true", (a > 0,), {}), ("_unsafe_index.Tensor_hacked_twin", (a, [i, i]), {}),
        ("_native_batch_norm_legit.no_stats", (image3, norms[:2, 0], norms[:2, 0], True, 0.1, 1e-5), {}),
        ("_native_batch_norm_legit_functional", (image3, *(norms[:2, 0],) * 4, True, 0.1, 1e-5), {}),
        ("_native_batch_norm_legit_no_training", (image3, *(norms[:2, 0],) * 4, 0.1, 1e-5), {}),
        ("conv1d.padding", (a[None], a[:, :6].reshape(3, 4, 2)), {"padding": "same"}),
        ("conv3d.padding", (image3, image3[..., :2, :2, :2]), {"padding": "same"}),
        ("conv_transpose1d", (a[None], a[:, :6].reshape(4, 3, 2)), {}),
        ("conv_transpose3d.input", (image3, image3[..., :2, :2, :2]), {}), ("geometric", (a, 0.5), {}),
        ("gradient.tensorarrayint", (a,), {"spacing": [a[0]], "dim": 1}),
        ("grid_sampler_3d", (image3, torch.rand(2, 4, 4, 4, 3), 0, 0, False), {}),
        ("index_fill.int_Tensor", (a, 0, i, torch.tensor(2.0)), {}), ("index_put.hacked_twin", (a, [i, i], a[0, :4]), {}),
        ("index_select_backward", (a, (4, 8), 0, i), {}), ("linalg_cond.p_str", (m, "fro"), {}),
        ("linalg_solve_ex", (m, a), {}), ("linspace.Tensor_Tensor", (a[0, 0], a[0, 1], 5), {}),
        ("masked_select_backward", (a[a > 0], a, a > 0), {}), ("movedim.intlist", (a, (0,), (1,)), {}),
        ("narrow.Tensor", (a, 0, torch.tensor(1), 2), {}), ("permute_copy", (a, (1, 0)), {}),
        ("nll_loss", (a, i), {}), ("nll_loss", (a[0], i[0]), {}), ("nll_loss2d", (picture, i.expand(2, 4, 4) % 2), {}),
        ("randint_like.Tensor", (a, torch.tensor(5)), {}), ("reflection_pad3d", (image3, (1, 1, 1, 1, 1, 1)), {}),
        ("replication_pad3d", (image3, (1, 1, 1, 1, 1, 1)), {}),
        *((f"{way}.input", (a[None], torch.zeros(1, 4, 3), [torch.ones(3, 8), torch.ones(3, 3)], False, 1, 0.0, False,
                            False, False), {}) for way in ("rnn_relu", "rnn_tanh")),
        *((f"{way}_cell", (a, torch.zeros(4, 3), torch.ones(3, 8), torch.ones(3, 3)), {}) for way in ("rnn_relu", "rnn_tanh")),
        ("scatter.value_reduce", (a, 0, i[None], 2.0), {"reduce": "multiply"}), ("split", (a, (1, 3)), {}),
        ("trace_backward", (a[0, 0], (4, 8)), {}), ("unsafe_split_with_sizes", (a, (1, 3)), {}),
        ("view_as_real_copy", (torch.complex(a, a),), {}), ("_upsample_nearest_exact1d.vec", (a[None], (9,), None), {}),
        ("upsample_linear1d.vec", (a[None], (9,), True, None), {}), ("upsample_bicubic2d.vec", (picture, (5, 5), True, None), {}),
        ("_upsample_nearest_exact2d.vec", (picture, None, (2.0, 2.0)), {}),
        *((f"{way}3d.vec", (image3, (5, 5, 5), None), {}) for way in ("upsample_nearest", "_upsample_nearest_exact")),
        ("upsample_trilinear3d.vec", (image3, (5, 5, 5), True, None), {}),
        *((f"_upsample_{way}2d_aa.vec", (picture, (5, 5), False, None), {}) for way in ("bilinear", "bicubic", "lanczos")),
    ]  # fmt: skip
    for size, name, planes in (
        (3, "1d", a[None, :2, :3]),
        (3, "2d", picture[..., :3, :3]),
        (3, "3d", image3[..., :3, :3, :3]),
    ):
        n, small = int(name[0]), planes.contiguous()
        out, sizes = (size + 1,) * n, tuple(small.shape)
        grad = torch.linspace(-1, 1, 4**n * sizes[0] * sizes[1]).view(*sizes[:2], *out)
        for way in ("upsample_nearest", "_upsample_nearest_exact"):
            calls += [(f"{way}{name}", (small, out), {}), (f"{way}{name}_backward", (grad, out, sizes), {})]
        way = {1: "linear", 2: "bilinear", 3: "trilinear"}[n]
        calls += [(f"upsample_{way}{name}", (small, out, True), {}),
                  (f"upsample_{way}{name}_backward", (grad, out, sizes, False), {})]  # fmt: skip
        if n == 2:
            calls += [
                (f"upsample_bicubic2d{b}", (*given, True), {})
                for b, given in (("", (small, out)), ("_backward", (grad, out, sizes)))
            ]
            calls += [(f"_upsample_{w}2d_aa{b}", (*given, False), {}) for w in ("bilinear", "bicubic")
                      for b, given in (("", (small, out)), ("_backward", (grad, out, sizes)))]  # fmt: skip
            calls += [("_upsample_lanczos2d_aa", (small, out, False), {})]
    return [(f"aten.{name}", args, named) for name, args, named in calls]


_ABOVE = (FUNCTIONS["indexing"], FUNCTIONS["products"])
"""Cannot be recorded below autograd: parts of them look at values."""


class Recording(Interpreter):
    """Runs a captured graph and keeps each call: (op as the table names it, args, kwargs)."""

    def __init__(self, module, calls):
        super().__init__(module)
        self.calls = calls

    def call_function(self, target, args, kwargs):
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
            self.calls.append((str(target).removesuffix(".default"), args, dict(kwargs)))
        return super().call_function(target, args, kwargs)


@cache
def calls():
    """Op -> the calls all programs make of it, at both levels at which they can be recorded."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            for fn, inputs, gradients in programs().values():
                for pre_dispatch in (False,) if gradients else (True,) if fn in _ABOVE else (True, False):
                    graph = make_fx(lambda *a, fn=fn: fn(*a), pre_dispatch=pre_dispatch)(*inputs)
                    with torch.no_grad():
                        Recording(graph, found).run(*inputs)
    by_op = {}
    found += direct()
    for name, args, kwargs in found:
        kept = by_op.setdefault(name, {})
        if len(kept) < 8:
            kept.setdefault(str([*map(_shape, args), kwargs.keys()]), (args, kwargs))
    return {name: list(kept.values()) for name, kept in by_op.items()}


def _shape(arg):
    return f"{arg.dtype}{list(arg.shape)}" if isinstance(arg, torch.Tensor) else str(arg)[:100]
