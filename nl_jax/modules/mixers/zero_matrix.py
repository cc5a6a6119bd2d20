"""What mixers share whose memory is a matrix that starts at zero, and which solve a chunk in their own way."""

from typing import Any

from flax import nnx

from nl_jax.memory import Architecture, Memory, Rule, dot_product
from nl_jax.modules.mixers.parameters import MixerParameters, head_size
from nl_jax.modules.mixers.stepping import Chunking, MemoryState, start_of_text


class ZeroMatrix(MixerParameters):
    """Parameters of a mixer with one matrix for each head, which is zero at the start of a text.

    A mixer adds ``__call__``, and parameters of its own.

    Args:
      width: of input and output.
      num_heads: must divide width.
      rule: how the matrix learns.
      outputs: size of what the matrix answers, in sizes of a head.
      eta, alpha: as for ``MixerParameters``.
      chunk_size: tokens that are learned at once.
      output_scale: of the output projection's initial weights.
      rngs: source of the initial weights.

    Raises:
      ValueError: for a head count that does not divide width, a chunk size below 1, or coefficients out of range.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        rule: Rule,
        outputs: int = 1,
        eta: Any = None,
        alpha: Any = None,
        chunk_size: int,
        output_scale: float,
        rngs: nnx.Rngs,
    ):
        size = head_size(width, num_heads)
        memory = Memory(Architecture(size, outputs * size), dot_product, rule, chunk_size)
        self.chunking = Chunking((chunk_size,), 1, keeps_boundary=False)
        super().__init__(
            width,
            num_heads,
            (memory,),
            learned=False,
            pulls_to_initial=False,
            eta=eta,
            alpha=alpha,
            mu=None,
            output_scale=output_scale,
            rngs=rngs,
        )

    def init_state(self, batch_size: int) -> MemoryState:
        """The state before the first token: a matrix of zeros for each head."""
        return start_of_text(self, self.chunking, batch_size)
