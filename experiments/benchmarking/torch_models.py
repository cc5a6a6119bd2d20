"""The Transformer of ``nl_jax.models`` in PyTorch, and how models in PyTorch are trained to measure their speed."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.benchmarking.timed_programs import Program, Sizes


def in_torch(build: Callable[..., Program]) -> Callable[..., Program]:
    """Makes a program be built on the same kind of device as JAX, with JAX's precision of matrix products (TF32)."""

    @functools.wraps(build)
    def on_device(sizes: Sizes, **options: Any) -> Program:
        import torch

        backend = jax.default_backend()
        if backend not in ("cpu", "gpu"):
            raise NotImplementedError(f"JAX runs on {backend}; PyTorch runs on CPU or a CUDA device")
        torch.set_float32_matmul_precision("high")
        with torch.device("cuda" if backend == "gpu" else "cpu"):
            return build(sizes, **options)

    return on_device


@contextlib.contextmanager
def device_memory() -> Iterator[Callable[[], int | None]]:
    """Frees what PyTorch holds of a GPU at the end, and gives a function for the bytes that it held at most.

    Call the function after the end; it returns None where PyTorch runs on a CPU, which it does not measure.
    """
    import torch

    peak = None
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        yield lambda: peak
    finally:
        gc.collect()
        if on_gpu:
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()


@in_torch
def torch_transformer(sizes: Sizes, *, compiled: bool = False) -> Program:
    """The Transformer of ``nl_jax.models`` in PyTorch, with the fused ``scaled_dot_product_attention``.

    Args:
        sizes: of the model and its batch; activations and matrix products have its ``dtype``, parameters and AdamW are
            float32.
        compiled: whether ``torch.compile`` compiles the layers, all from one program, and the loss.
    """
    import torch
    from torch.nn import functional as F

    width, head_dim = sizes.width, sizes.width // sizes.num_heads
    narrow = getattr(torch, sizes.dtype)

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
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)

    def block(x: torch.Tensor, layer: dict[str, torch.Tensor]) -> torch.Tensor:
        layer = {name: weight.to(narrow) for name, weight in layer.items()}
        projected = F.linear(F.rms_norm(x, (width,), layer["mixer_norm"]), layer["query_key_value"])
        # [batch, time, 3 width] -> three of [batch, heads, time, head_dim]
        query, key, value = projected.unflatten(-1, (3, sizes.num_heads, head_dim)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotary(query), rotary(key), value, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).flatten(2), layer["output"])
        gate, up = F.linear(F.rms_norm(x, (width,), layer["norm"]), layer["gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer["down"])

    def token_loss(x: torch.Tensor, embedding: torch.Tensor, norm: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = F.linear(F.rms_norm(x, (width,), norm.to(narrow)), embedding.to(narrow))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    if compiled:
        block, token_loss = (torch.compile(function, dynamic=False) for function in (block, token_loss))

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = F.embedding(inputs, embedding).to(narrow) * width**0.5
        for layer in layers:
            x = block(x, layer)
        return token_loss(x, embedding, final_norm, targets)

    return torch_program(sizes, [embedding, final_norm, *(p for layer in layers for p in layer.values())], loss)


def torch_program(
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
