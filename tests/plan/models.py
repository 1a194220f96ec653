"""Models nobody here wrote: built, written, read back, replayed at other batch sizes, compared with eager.

``python -m tests.plan.models --write`` runs all of them and writes docs/models.md.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedq.errors import FedqError
from fedq.plan.codec import decode
from fedq.plan.file import decode_plan, encode_plan
from fedq.plan.graph import flatten
from fedq.plan.plan import Plan, from_file
from fedq.trust.keys import Key
from tests import workers

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BATCHES = (1, 2, 5)
VOCABULARY = 50


@dataclass(frozen=True)
class Model:
    """How to make it, and its arguments for a batch of n."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], dict[str, Any] | tuple[Any, ...]]


def _layer(make: Callable[[], nn.Module], *shapes: tuple[int, ...], at: int = 0) -> Model:
    def batch(n: int) -> tuple[Any, ...]:
        return tuple(torch.randn(*shape[:at], n, *shape[at:]) for shape in shapes)

    return Model(make, batch)


LAYERS = {
    "nn.RNN": _layer(lambda: nn.RNN(4, 3, 2), (5, 4), at=1),
    "nn.LSTM": _layer(lambda: nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True), (5, 4)),
    "nn.GRU": _layer(lambda: nn.GRU(4, 3, batch_first=True), (5, 4)),
    "nn.Conv1d": _layer(lambda: nn.Conv1d(2, 3, 3), (2, 9)),
    "nn.Conv2d": _layer(lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 8, 8)),
    "nn.Conv3d": _layer(lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "nn.ConvTranspose2d": _layer(lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 5, 5)),
    "nn.BatchNorm2d": _layer(lambda: nn.BatchNorm2d(3), (3, 4, 4)),
    "nn.LayerNorm": _layer(lambda: nn.LayerNorm(6), (4, 6)),
    "nn.GroupNorm": _layer(lambda: nn.GroupNorm(2, 4), (4, 5)),
    "nn.InstanceNorm2d": _layer(lambda: nn.InstanceNorm2d(3), (3, 4, 4)),
    "nn.RMSNorm": _layer(lambda: nn.RMSNorm(6), (4, 6)),
    "nn.MultiheadAttention": _layer(lambda: nn.MultiheadAttention(8, 2, batch_first=True), (5, 8), (5, 8), (5, 8)),
    "nn.TransformerEncoder": _layer(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), (5, 8)
    ),
    "nn.Transformer": _layer(lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (6, 8), (5, 8)),
}


def _tokens(n: int, length: int = 7) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (n, length))


def _masked(n: int) -> torch.Tensor:
    return (torch.arange(7) < torch.arange(4, 4 + n)[:, None]).long()


def _of_transformers(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config)(**settings))

    return make


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TRANSFORMERS = {
    "transformers BertModel": Model(
        _of_transformers("BertModel", "BertConfig", vocab_size=VOCABULARY, max_position_embeddings=32, **_SMALL),
        lambda n: {"input_ids": _tokens(n), "attention_mask": _masked(n)},
    ),
    "transformers GPT2LMHeadModel": Model(
        _of_transformers(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32,
            use_cache=False, bos_token_id=1, eos_token_id=2,
        ),
        lambda n: {"input_ids": _tokens(n)},
    ),
    "transformers ViTForImageClassification": Model(
        _of_transformers("ViTForImageClassification", "ViTConfig", image_size=16, patch_size=4, num_labels=3, **_SMALL),
        lambda n: {"pixel_values": torch.randn(n, 3, 16, 16)},
    ),
    "transformers ResNetForImageClassification": Model(
        _of_transformers(
            "ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
            layer_type="basic", num_labels=3,
        ),
        lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)},
    ),
    "transformers WhisperModel": Model(
        _of_transformers(
            "WhisperModel", "WhisperConfig", vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
            max_source_positions=8, max_target_positions=16, num_mel_bins=8, use_cache=False, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        lambda n: {"input_features": torch.randn(n, 8, 16), "decoder_input_ids": _tokens(n, 5)},
    ),
    "transformers T5Model": Model(
        _of_transformers(
            "T5Model", "T5Config", vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            use_cache=False,
        ),
        lambda n: {"input_ids": _tokens(n, 6), "decoder_input_ids": _tokens(n, 5)},
    ),
}  # fmt: skip
MODELS = {**LAYERS, **TRANSFORMERS}


def row(name: str) -> str:
    """The line of the table: what holds, checked now."""
    model = MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = model.make().eval()
        args, kwargs = _arguments(model.batch(3))
        try:
            plan = Plan(module).build(*args, **kwargs)
        except FedqError as error:
            return f"| {name} | refused: {str(error).splitlines()[0]} | | | |"
        raw = b"".join(encode_plan(plan.file(), Key.from_seed(bytes(32))))
        file = decode_plan(decode(raw))
        loaded = from_file(file)
        equal = {
            _compare(module, runs, *_arguments(model.batch(n)))
            for n in BATCHES
            for runs in (loaded, partial(workers.replayed, file))
        }
    inputs = ", ".join(f"`{t}`" for t in plan.graph.inputs)
    how = "equal" if equal == {"equal"} else "close" if "no" not in equal else "no"
    return f"| {name} | {inputs} | {len(plan.actions)} | {parameters(module)} | {how} |"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _arguments(given: dict[str, Any] | tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), given) if isinstance(given, dict) else (given, {})


def _compare(module: nn.Module, plan: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    with torch.inference_mode():
        want, got = _leaves(module(*args, **kwargs)), _leaves(plan(*args, **kwargs))
    if len(want) == len(got) and all(map(torch.equal, want, got)):
        return "equal"
    close = len(want) == len(got) and all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(want, got, strict=True)
    )
    return "close" if close else "no"


def _leaves(out: Any) -> list[torch.Tensor]:
    return [leaf for leaf in flatten(out) if isinstance(leaf, torch.Tensor)]


def page() -> str:
    rows = "\n".join(map(row, MODELS))
    return f"""# Models that hold

Random weights, small configurations, `eval()`; built with a batch of 3, written to a file, read back, and replayed
with batches of {", ".join(map(str, BATCHES))}, here and in a worker process. *equal*: every output is
`torch.equal` to eager's; *close*: `allclose` with rtol 1e-5, atol 1e-6. Letters are free sizes. Made by
`python -m tests.plan.models --write`; `make models` checks it.

| model | inputs | actions | parameters | outputs |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    made = page()
    if "--write" in sys.argv:
        PAGE.write_text(made, "utf-8")
    print(made)
