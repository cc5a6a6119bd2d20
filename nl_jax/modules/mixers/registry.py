"""Every sequence mixer by name: one memory, composed of parts, a few lines each (§5, Eq. 62-69).

What each published model is made of; keys, values and queries have unit length after a width-4 convolution.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx

from nl_jax.errors import InputError
from nl_jax.memory import Architecture
from nl_jax.modules.mixers.atlas_parts import check_count
from nl_jax.modules.mixers.attention import Attention
from nl_jax.modules.mixers.channel_retention import ChannelRetention
from nl_jax.modules.mixers.coefficients import MOMENTUM_BIAS, RETENTION_BIAS
from nl_jax.modules.mixers.comba import Comba
from nl_jax.modules.mixers.hybrid import SlidingWindowMemory
from nl_jax.modules.mixers.lstm import LSTM
from nl_jax.modules.mixers.memory_mixer import MemoryMixer
from nl_jax.modules.mixers.mesa import Mesa
from nl_jax.modules.mixers.oja import Oja
from nl_jax.modules.mixers.parameters import head_size
from nl_jax.modules.mixers.self_modifying_titans import SelfModifyingTitans
from nl_jax.modules.mixers.srwm import SelfReferentialMatrix

HEBBIAN: dict[str, Any] = {"rule": "paper", "delta": False, "eta": 1.0}  # W ← α W + v kᵀ
DELTA: dict[str, Any] = {"rule": "paper", "delta": True, "eta": ("sigmoid", 0.0)}  # W ← W (α I - η k kᵀ) + η v kᵀ
MINI_BATCH: dict[str, Any] = {
    "rule": "normalized",
    "delta": False,
    "eta": ("softplus", 0.0),
}  # gradients at the boundary


def _matrix(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    size = head_size(width, num_heads)
    parts = {"objective": "dot_product", "initial": "zero", "retention": "zero", "alpha": 1.0, **parts}
    return MemoryMixer(width, num_heads, architecture=Architecture(size, size), **parts)


def _mlp(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """An MLP of depth 2, with four times the head's size hidden; residual unless it sees polynomial features."""
    size, degree = head_size(width, num_heads), parts.get("degree", 1)
    shape = {"hidden": 4 * size, "depth": 2} | {k: parts.pop(k) for k in ("hidden", "depth", "gated") if k in parts}
    check_count("degree", degree, 1)  # before the architecture refuses the size that comes of it
    architecture = Architecture(degree * size, size, residual=degree == 1, **shape)
    return MemoryMixer(width, num_heads, architecture=architecture, **parts)


def linear_attention(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """Hebbian matrix without decay (Eq. 64; Katharopoulos et al., 2020).

    Departures: keys and queries have unit length where the paper applies the feature map ``elu(x) + 1``, and a root
    mean square norm of each head's answer takes the place of the paper's normaliser, the sum of all keys.
    """
    return _matrix(width, num_heads, **HEBBIAN | parts)


def retnet(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """RetNet: a Hebbian matrix with a constant decay for each head, 1 - 2^(-5-h) (Sun et al., 2023).

    Departures: keys and queries have no xPos rotation, so that a token's position shows in the decay only, and the
    output has no swish gate.
    """
    decay = tuple(1.0 - 2.0 ** (-5 - h) for h in range(num_heads))
    return _matrix(width, num_heads, **HEBBIAN | {"alpha": decay} | parts)


def mamba2(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """``W ← α W + η v kᵀ`` with a gate for each of both (Mamba-2; Dao and Gu, 2024).

    Departures: the paper makes both from one step Δ, α = exp(-A Δ) and η = Δ; keys and queries have unit length here
    and differ between heads; there is no skip from values to the output, and no gate of the output.
    """
    gates = {"eta": ("softplus", 0.0), "alpha": ("sigmoid", RETENTION_BIAS)}
    return _matrix(width, num_heads, **HEBBIAN | gates | parts)


def gla(width: int, num_heads: int, **parts: Any) -> ChannelRetention:
    """Gated linear attention: a Hebbian matrix with a retention for each channel of its keys (Yang et al., 2024)."""
    return ChannelRetention(width, num_heads, removal=False, **parts)


def rwkv7(width: int, num_heads: int, **parts: Any) -> ChannelRetention:
    """RWKV-7's time mixing: such a matrix with a delta term whose rate differs between channels (Peng et al., 2025)."""
    return ChannelRetention(width, num_heads, removal=True, **parts)


def linear_attention_pp(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """Linear attention whose initial state is meta-learned (Linear Attention++, Eq. 69)."""
    return linear_attention(width, num_heads, **{"initial": "learned", **parts})


def delta_net(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """``W ← W (I - β k kᵀ) + β v kᵀ`` (Eq. 65; Yang et al., 2024); β in (0, 1), or to 2: ``allow_neg_eigval``.

    Departures: keys and queries pass through no feature map and no SiLU before they get unit length, and values through
    no SiLU.
    """
    return _matrix(width, num_heads, **DELTA | parts)


def gated_delta_net(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """``W ← α W (I - β k kᵀ) + β v kᵀ`` (Yang et al., 2025).

    Departures: those of ``delta_net``; α is a sigmoid of the input, without the paper's decay rate of each head; and
    the output has no SiLU gate.
    """
    return _matrix(
        width, num_heads, **DELTA | {"delta_after_retention": True, "alpha": ("sigmoid", RETENTION_BIAS)} | parts
    )


def ttt_linear(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """Residual matrix, L2, gradient descent by mini-batches from a learned initial state (Sun et al., 2024)."""
    size = head_size(width, num_heads)
    architecture = Architecture(size, size, residual=True)
    return MemoryMixer(width, num_heads, architecture=architecture, **MINI_BATCH | {"alpha": 1.0} | parts)


def ttt_mlp(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """The same with a residual two-layer MLP of four times the head's size (Sun et al., 2024)."""
    return _mlp(width, num_heads, **MINI_BATCH | {"alpha": 1.0} | parts)


def dla(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """Deep Linear Attention: an MLP that learns dot products by gradient descent with retention (Behrouz et al., 2025).

    Departures: gradients are taken at chunk boundaries, and their steps are normalized (``nl_jax.memory.rules``), since
    an MLP that learns dot products has no bound of its own.
    """
    return _mlp(width, num_heads, **MINI_BATCH | {"objective": "dot_product"} | parts)


def titans(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """Titans' long-term memory: MLP, L2, momentum and retention, all gated by the input (Behrouz et al., 2024)."""
    return _mlp(width, num_heads, **{"delta": False, "mu": ("sigmoid", MOMENTUM_BIAS), **parts})


def atlas(width: int, num_heads: int, **parts: Any) -> MemoryMixer:
    """Omega rule on polynomial features, with orthogonal updates (Eq. 68; Behrouz et al., 2025, arXiv 2505.23735).

    Every update descends the loss of the last ``window`` tokens. Keys and queries become powers of their channels, 1 to
    ``degree``. The sum of a chunk's updates is made orthogonal by Newton-Schulz when the chunk ends.

    Departures: the paper's features include the products of different channels, of which there are size^degree, so that
    no memory of these sizes could hold them; the paper orthogonalises the momentum of every token, at about 60 times
    the cost of the rest of a small model, and its step length does not depend on the update's, while here the length is
    kept, for which the normalized rule provides; a memory with more than one power is not residual.
    ``degree=1, newton_schulz_steps=0`` is the memory without both, which earlier versions called atlas.
    """
    parts = {"degree": 2, "newton_schulz_steps": 5, **parts}
    hidden = head_size(width, num_heads)
    return _mlp(width, num_heads, **MINI_BATCH | {"hidden": hidden, "mu": ("sigmoid", 1.0), "window": 4} | parts)


def attention(
    width: int, num_heads: int, *, chunk_size: int = 0, context_length: int = 1024, **parts: Any
) -> Attention:
    """Softmax attention (Eq. 62), the non-parametric memory; it has no chunks."""
    return Attention(width, num_heads, context_length=context_length, **parts)


def sliding_window_attention(
    width: int, num_heads: int, *, chunk_size: int = 0, window: int = 64, **parts: Any
) -> Attention:
    """Softmax attention to the last ``window`` tokens (Eq. 63)."""
    return Attention(width, num_heads, context_length=window, **parts)


def sliding_window_memory(
    width: int,
    num_heads: int,
    *,
    memory: str = "gated_delta_net",
    window: int = 64,
    attention_heads: int | None = None,
    output_scale: float = 1.0,
    rngs: nnx.Rngs,
    **parts: Any,
) -> SlidingWindowMemory:
    """Attention to the last ``window`` tokens plus a memory of the whole text, in one block (LaCT's shape).

    ``memory`` names the mixer that is the memory; ``num_heads`` and ``parts`` are its own. ``attention_heads`` is twice
    ``num_heads`` where None is given.
    """
    scale = output_scale * 2**-0.5  # two branches enter the stream
    heads = 2 * num_heads if attention_heads is None else attention_heads
    attention = Attention(width, heads, context_length=window, output_scale=scale, rngs=rngs)
    return SlidingWindowMemory(
        attention, mixer(memory, width=width, num_heads=num_heads, output_scale=scale, rngs=rngs, **parts)
    )


MIXERS: dict[str, Callable[..., Any]] = {
    "linear_attention": linear_attention,
    "retnet": retnet,
    "delta_net": delta_net,
    "gated_delta_net": gated_delta_net,
    "comba": Comba,
    "mamba2": mamba2,
    "gla": gla,
    "rwkv7": rwkv7,
    "oja": Oja,
    "mesa": Mesa,
    "ttt_linear": ttt_linear,
    "ttt_mlp": ttt_mlp,
    "dla": dla,
    "titans": titans,
    "atlas": atlas,
    "linear_attention_pp": linear_attention_pp,
    "self_modifying_titans": SelfModifyingTitans,
    "lstm": LSTM,
    "srwm": SelfReferentialMatrix,
    "attention": attention,
    "sliding_window_attention": sliding_window_attention,
    "sliding_window_memory": sliding_window_memory,
}
"""The constructor of each sequence mixer, by name; `mixer` calls them."""


def choose_kernel(sequence_mixer: Any, kernel: str) -> None:
    """Sets the program that carries a mixer's state through a text, as ``nl_jax.parallel.kernels`` takes it.

    Mixers without a kernel take any name but "pallas".

    Raises:
      InputError: for "pallas" and a mixer without a kernel.

    Examples:
      >>> from flax import nnx
      >>> from nl_jax.modules import choose_kernel, mixer
      >>> delta_net = mixer("delta_net", width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0))
      >>> choose_kernel(delta_net, "xla")
      >>> delta_net.kernel
      'xla'
    """
    parts = [sequence_mixer]
    if isinstance(sequence_mixer, SlidingWindowMemory):
        parts = [sequence_mixer.attention, sequence_mixer.memory]
    for part in parts:
        if getattr(part, "has_kernel", False):
            part.kernel = kernel
        elif kernel == "pallas":
            raise InputError(f"kernel=pallas: {type(part).__name__} with these options has none; expected auto or xla")


def mixer(name: str, *, width: int, num_heads: int, chunk_size: int = 64, rngs: nnx.Rngs, **options: Any) -> Any:
    """A sequence mixer by name: ``y, state = m(x, state)``, ``state = m.init_state(batch_size)``.

    x and y are [batch, time, width].

    Args:
      name: one of ``MIXERS``.
      width: of input and output.
      num_heads: must divide width.
      chunk_size: tokens of a chunk; attention has none.
      rngs: source of the initial weights.
      **options: of the module, such as ``read=`` or ``output_scale=``.

    Raises:
      ValueError: for an unknown name, an option that the mixer does not have, or sizes that do not fit.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.modules import mixer
      >>> m = mixer("gated_delta_net", width=8, num_heads=2, chunk_size=4, rngs=nnx.Rngs(0))
      >>> y, state = m(jnp.ones((1, 5, 8)), m.init_state(1))
      >>> y2, state = m(jnp.ones((1, 3, 8)), state)  # the text goes on
      >>> y.shape, y2.shape, state.delta_w[0][0].shape  # of the memory: [batch, heads, in, out]
      ((1, 5, 8), (1, 3, 8), (1, 2, 4, 4))
    """
    if name not in MIXERS:
        raise ValueError(f"unknown mixer {name!r}; expected one of {', '.join(MIXERS)}")
    try:
        return MIXERS[name](width=width, num_heads=num_heads, chunk_size=chunk_size, rngs=rngs, **options)
    except TypeError as error:
        raise ValueError(f"mixer {name!r}: {str(error).rpartition('() ')[2]}") from error  # without our function's name
