"""A linear map with a change of low rank beside it, ``y = x W + (x A) B`` (LoRA: Hu et al., 2021)."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float


class LowRank(nnx.Module):
    """A linear layer with a change of low rank, whose gradient never takes the size of the whole matrix.

    Args:
      layer: the layer, whose weights it shares; all leaves may have leading axes of blocks.
      first, second: the two factors.
    """

    def __init__(self, layer: Any, first: Float[Array, "*blocks in rank"], second: Float[Array, "*blocks rank out"]):
        self.layer, self.first, self.second = layer, nnx.Param(first), nnx.Param(second)

    @property
    def kernel(self) -> Any:
        """The layer's own weights."""
        return self.layer.kernel

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """Maps every vector."""
        return self.layer(x) + (x @ self.first[...]) @ self.second[...]
