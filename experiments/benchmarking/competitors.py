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
from experiments.benchmarking.torch_models import in_torch, torch_program, torch_transformer
from nl_jax import InputError
from nl_jax.models import LanguageModel, named_config


def in_float32(build: Callable[[Sizes], Program]) -> Callable[[Sizes], Program]:
    """Refuses other types for a program that computes in float32, since its speed would not be comparable."""

    @functools.wraps(build)
    def checked(sizes: Sizes) -> Program:
        if sizes.dtype != "float32":
            raise InputError(f"--dtype={sizes.dtype}: {build.__name__} computes in float32; expected --dtype=float32")
        return build(sizes)

    return checked


def jax_attention(sizes: Sizes) -> Program:
    """The Transformer of ``nl_jax.models`` with `jax.nn.dot_product_attention`, which holds all scores at once."""
    names = ("vocab_size", "width", "num_heads", "num_layers", "mlp_hidden", "dtype", "remat")
    fields = {name: getattr(sizes, name) for name in names}
    config = named_config("transformer", "tiny", **fields, context_length=sizes.length)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, window: int, empty: None) -> jax.Array:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)  # no text is longer than the window

    def init_model() -> LanguageModel:
        model = LanguageModel(config, rngs=nnx.Rngs(0))
        mixer: Any = model.blocks.mixer
        mixer.attend = attend
        return model

    return our_program(config, sizes.batch_size, sizes.length, memory_limit=sizes.memory_limit, init_model=init_model)


@in_float32
@in_torch
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

    return torch_program(sizes, list(model.parameters()), loss)


@in_float32
@in_torch
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

    return torch_program(sizes, [p for p in model.parameters() if p.requires_grad], loss, learn)


COMPETITORS: dict[str, Callable[[Sizes], Program]] = {
    "jax_attention": jax_attention,
    "torch_transformer": torch_transformer,
    "titans_pytorch": titans_pytorch,
    "nested_learning": nested_learning,
}
