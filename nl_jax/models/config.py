"""The configuration of a language model, and its conversion to and from JSON."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np

from nl_jax.errors import InputError
from nl_jax.models.precision import DTYPES
from nl_jax.models.remat import POLICIES
from nl_jax.modules import MIXERS
from nl_jax.parallel.kernels import INTERPRETED, KERNELS

REGIMES = ("outer", "online", "meta")
SIZES = ("vocab_size", "width", "num_layers", "num_heads", "mlp_hidden", "chunk_size", "context_length")


@dataclass(frozen=True)
class LanguageModelConfig:
    """The configuration of a language model, which fixes the shapes of its parameters and of its state.

    Attributes:
      mixer: name of the sequence mixer, one of ``nl_jax.modules.MIXERS``.
      mixer_options: options of the mixer, as (name, value) pairs.
      vocab_size: number of token ids.
      width: width of the residual stream.
      num_layers: number of blocks.
      num_heads: number of heads of the mixer.
      mlp_hidden: number of hidden units of each CMS block.
      cms_periods: period of each CMS block of a layer: the time between two of its updates. A Transformer has one block
        with period 1.
      cms_regime: "outer": periods count optimizer steps. "online" or "meta": periods count tokens, and the blocks learn
        in context (``in_context.py``).
      cms_variant: one of ``nl_jax.modules.continuum_memory.VARIANTS``.
      cms_rate: initial learning rate of blocks that learn in context; pre-training in the "meta" regime learns it.
      chunk_size: number of tokens between two boundaries of the memories. Attention does not use it.
      context_length: number of tokens that attention sees from each token, that token included.
      unroll: whether the layers are written one after the other into the program, instead of a scan. The program then
        grows with depth; a scan copies the values kept for the backward pass. None unrolls up to 4 layers, and any
        number if blocks learn in context: the gradient of the blocks then skips the first layer's mixer.
      remat: what the backward pass of a block recomputes instead of keeping it, one of
        ``nl_jax.models.remat.POLICIES``. Earlier versions had False for "none" and True for "block", which are still
        accepted.
      dtype: type of activations and of matrix products, "float32" or "bfloat16". Parameters and the states of memories
        are float32 in either (``precision.py``).
      tied_head: whether the logits are products with the embedding; else with a matrix of their own.
      scaled_embedding: whether embeddings are multiplied by ``width ** 0.5``.
      norm_epsilon: of the root mean square norms of blocks and of the output; those inside a mixer have their own.
      kernel: which program carries the state of memories through a text and computes attention: "auto" for a kernel
        (Pallas) on a TPU or GPU where there is one that fits, "xla", or "pallas" where it must be the kernel. It
        changes results by rounding only, so it is no part of what ``to_json`` saves. A kernel has a gradient, but
        neither forward mode nor a second derivative. So "auto" is "xla" where the CMS learns in context, and "xla" is
        what code needs that differentiates a model twice on an accelerator. On a GPU attention is cuDNN's with all
        three (``causal_attention``).

    Examples:
      >>> from nl_jax.models import LanguageModelConfig
      >>> sizes = {"width": 8, "num_layers": 2, "num_heads": 1, "mlp_hidden": 16}
      >>> config = LanguageModelConfig(mixer="titans", vocab_size=10, **sizes)
      >>> LanguageModelConfig.from_json(config.to_json()) == config
      True
    """

    mixer: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_hidden: int
    cms_periods: tuple[int, ...] = (1,)
    cms_regime: str = "outer"
    cms_variant: str = "sequential"
    cms_rate: float = 0.1
    chunk_size: int = 64
    context_length: int = 1024
    unroll: bool | None = None
    remat: str = "none"
    mixer_options: tuple[tuple[str, Any], ...] = ()
    dtype: str = "float32"
    tied_head: bool = True
    scaled_embedding: bool = True
    norm_epsilon: float = 1e-6
    kernel: str = "auto"

    def __post_init__(self):
        """Checks the values that no module checks."""
        if isinstance(self.remat, bool):
            object.__setattr__(self, "remat", "block" if self.remat else "none")
        for name, known in (("remat", POLICIES), ("dtype", DTYPES), ("kernel", KERNELS)):
            if getattr(self, name) not in (*known, *(INTERPRETED if name == "kernel" else ())):
                raise InputError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.mixer not in MIXERS:
            raise InputError(f"unknown mixer {self.mixer!r}; expected one of {', '.join(MIXERS)}")
        for name in SIZES:
            if not _is_count(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)!r}: expected an integer of at least 1")
        periods = self.cms_periods
        if not isinstance(periods, tuple | list) or not periods or not all(map(_is_count, periods)):
            raise InputError(f"cms_periods={self.cms_periods!r}: expected one or more integers, each at least 1")
        if not 0.0 < self.cms_rate < math.inf:
            raise InputError(f"cms_rate={self.cms_rate!r}: expected a positive number")
        if self.cms_regime not in REGIMES:
            raise InputError(f"cms_regime={self.cms_regime!r}: expected one of {', '.join(REGIMES)}")
        if self.cms_regime != "outer" and min(self.cms_periods) % self.chunk_size:
            raise InputError(
                f"chunk_size={self.chunk_size}: expected a divisor of the CMS levels' shortest period, "
                f"{min(self.cms_periods)}"
            )
        if self.cms_regime != "outer" and self.kernel == "pallas":
            raise InputError(
                f"kernel=pallas with cms_regime={self.cms_regime!r}: a kernel is differentiated once; "
                "expected auto or xla"
            )

    @property
    def optimizer_periods(self) -> tuple[int, ...]:
        """Number of optimizer steps between updates of each CMS block in pre-training; 1 if periods count tokens."""
        return self.cms_periods if self.cms_regime == "outer" else (1,) * len(self.cms_periods)

    def to_json(self) -> dict[str, Any]:
        """All fields but ``kernel`` as values that JSON can hold; ``from_json`` turns them back into the configuration.

        Raises:
          ValueError: for an option that JSON cannot hold, such as a function; the message names the field.
        """
        return {name: _to_json(value, name) for name, value in asdict(self).items() if name != "kernel"}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "LanguageModelConfig":
        """The configuration from the result of ``to_json``, also after a round trip through JSON text.

        Raises:
          InputError: for an unknown or missing field, or an invalid value.
        """
        known = {field.name: field.default is MISSING for field in fields(cls)}
        unknown = [name for name in given if name not in known]
        missing = [name for name, required in known.items() if required and name not in given]
        if unknown or missing:
            what = f"{'unknown' if unknown else 'missing'} {', '.join(unknown or missing)}"
            raise InputError(f"model configuration: {what}; expected {', '.join(known)}")
        try:
            return cls(**{name: _from_json(value) for name, value in given.items()})
        except TypeError as error:
            raise InputError(f"model configuration: a value of another type than expected ({error})") from error


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _to_json(value: Any, name: str) -> Any:
    if isinstance(value, tuple | list):
        return [_to_json(item, name) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float | str | None):
        kind = type(value).__name__
        raise ValueError(f"{name}: {kind} cannot be saved; expected numbers, strings, None, or tuples of these")
    return value


def _from_json(value: Any) -> Any:
    """Converts the lists of JSON to the tuples of a configuration, at every depth."""
    return tuple(map(_from_json, value)) if isinstance(value, list) else value
