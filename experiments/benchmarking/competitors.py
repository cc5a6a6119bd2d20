"""Competitors in training speed: models of the same sizes from other packages, trained by the same kind of step.

They are a Transformer with the attention of JAX, and models in PyTorch. The latter run on the same device as JAX, a CPU
or a CUDA device. Building one raises ModuleNotFoundError if its package is not installed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from experiments.benchmarking.timed_programs import Program, Sizes, our_program
from nl_jax.models import LanguageModel, named_config


def jax_attention(sizes: Sizes) -> Program:
    """The Transformer of ``nl_jax.models`` with `jax.nn.dot_product_attention`, which holds all scores at once."""
    shape = {name: getattr(sizes, name) for name in ("vocab_size", "width", "num_heads", "num_layers", "mlp_hidden")}
    config = named_config("transformer", "tiny", **shape, context_length=sizes.length)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, window: int) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)  # no text is longer than the window

    def init_model() -> LanguageModel:
        model = LanguageModel(config, rngs=nnx.Rngs(0))
        mixer: Any = model.blocks.mixer
        mixer.attend = attend
        return model

    return our_program(config, sizes.batch_size, sizes.length, memory_limit=sizes.memory_limit, init_model=init_model)


def _in_torch(build: Callable[[Sizes], Program]) -> Callable[[Sizes], Program]:
    """Makes a program be built on the same kind of device as JAX, with JAX's precision of matrix products (TF32)."""

    @functools.wraps(build)
    def on_device(sizes: Sizes) -> Program:
        import torch

        backend = jax.default_backend()
        if backend not in ("cpu", "gpu"):
            raise NotImplementedError(f"JAX runs on {backend}; PyTorch runs on CPU or a CUDA device")
        torch.set_float32_matmul_precision("high")
        with torch.device("cuda" if backend == "gpu" else "cpu"):
            return build(sizes)

    return on_device


@_in_torch
def torch_transformer(sizes: Sizes) -> Program:
    """The Transformer of ``nl_jax.models`` in PyTorch, with the fused ``scaled_dot_product_attention``."""
    import torch
    from torch.nn import functional as F

    width, head_dim = sizes.width, sizes.width // sizes.num_heads

    def matrix(size_out: int, size_in: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(size_out, size_in) * size_in**-0.5)

    def scale() -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.ones(width))

    embedding, final_norm = matrix(sizes.vocab_size, width), scale()
    layers = [
        {
            "mixer_norm": scale(),
            "query_key_value": matrix(3 * width, width),
            "output": matrix(width, width),
            "norm": scale(),
            "gate_up": matrix(2 * sizes.mlp_hidden, width),
            "down": matrix(width, sizes.mlp_hidden),
        }
        for _ in range(sizes.num_layers)
    ]
    frequency = 10_000.0 ** (-torch.arange(head_dim // 2) / (head_dim // 2))
    angle = torch.arange(sizes.length)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()  # [time, head_dim / 2]

    def rotary(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = F.embedding(inputs, embedding) * width**0.5
        for layer in layers:
            projected = F.linear(F.rms_norm(x, (width,), layer["mixer_norm"]), layer["query_key_value"])
            # [batch, time, 3 width] -> three of [batch, heads, time, head_dim]
            query, key, value = projected.unflatten(-1, (3, sizes.num_heads, head_dim)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(rotary(query), rotary(key), value, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).flatten(2), layer["output"])
            gate, up = F.linear(F.rms_norm(x, (width,), layer["norm"]), layer["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        logits = F.linear(F.rms_norm(x, (width,), final_norm), embedding)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return _torch_program(sizes, [embedding, final_norm, *(p for layer in layers for p in layer.values())], loss)


@_in_torch
def titans_pytorch(sizes: Sizes) -> Program:
    """``MemoryAsContextTransformer`` of titans-pytorch, with the options of its README."""
    from titans_pytorch import MemoryAsContextTransformer

    model = MemoryAsContextTransformer(
        num_tokens=sizes.vocab_size,
        dim=sizes.width,
        depth=sizes.num_layers,
        heads=sizes.num_heads,
        dim_head=sizes.width // sizes.num_heads,
        segment_len=128,
        num_persist_mem_tokens=4,
        num_longterm_mem_tokens=16,
    )

    def loss(inputs: Any, targets: Any) -> Any:
        from torch.nn import functional as F

        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return _torch_program(sizes, list(model.parameters()), loss)


@_in_torch
def nested_learning(sizes: Sizes) -> Program:
    """Hope of nested-learning with two CMS levels and chunks of 64, including the pass that updates its memories."""
    import torch
    from nested_learning.levels import LevelSpec
    from nested_learning.model import HOPEModel, ModelConfig
    from nested_learning.training import compute_teach_signal

    model = HOPEModel(
        ModelConfig(
            vocab_size=sizes.vocab_size,
            dim=sizes.width,
            num_layers=sizes.num_layers,
            heads=sizes.num_heads,
            titan_level=LevelSpec("titan", 8),
            cms_levels=[LevelSpec("fast", 1), LevelSpec("slow", 4)],
            block_variant="hope_selfmod",
            self_mod_chunk_size=64,
        )
    )
    logits = None

    def loss(inputs: Any, targets: Any) -> Any:
        nonlocal logits
        logits = model(inputs)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def learn(inputs: Any) -> None:
        signal = compute_teach_signal(model, logits, inputs)
        with torch.no_grad():
            model(inputs, teach_signal=signal)

    return _torch_program(sizes, [p for p in model.parameters() if p.requires_grad], loss, learn)


def _torch_program(
    sizes: Sizes,
    parameters: list[Any],
    loss: Callable[[Any, Any], Any],
    after_backward: Callable[[Any], None] = lambda inputs: None,
) -> Program:
    """Training by AdamW with gradient clipping on a batch of random tokens."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(sizes.vocab_size, (sizes.batch_size, sizes.length + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad()
        value = loss(inputs, targets)
        value.backward()
        after_backward(inputs)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return value.item()

    def forward() -> float:
        with torch.no_grad():
            return loss(inputs, targets).item()

    return Program(sum(p.numel() for p in parameters), step, forward)


COMPETITORS: dict[str, Callable[[Sizes], Program]] = {
    "jax_attention": jax_attention,
    "torch_transformer": torch_transformer,
    "titans_pytorch": titans_pytorch,
    "nested_learning": nested_learning,
}
