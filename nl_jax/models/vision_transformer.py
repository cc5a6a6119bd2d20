"""Vision Transformer: patches as tokens, a stack of equal blocks run by one scan, and a head on the mean token."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from nl_jax.modules import Block, ContinuumMemory
from nl_jax.modules.layers import linear


class FullAttention(nnx.Module):
    """Multi-head softmax attention from every token to every token, without positions and without a state.

    Args:
      width: size of the input and of the output.
      num_heads: number of heads, which must divide ``width``.

    Raises:
      ValueError: if ``num_heads`` does not divide ``width``.
    """

    def __init__(self, width: int, num_heads: int, *, output_scale: float = 1.0, rngs: nnx.Rngs):
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads={num_heads}: expected a divisor of width={width}")
        self.num_heads = num_heads
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.output = linear(width, width, scale=output_scale, rngs=rngs)

    def init_state(self, batch_size: int) -> None:
        """Returns None: this mixer has no state."""

    def __call__(
        self, x: Float[Array, "batch time width"], state: Any = None, *, at_boundary: bool = False
    ) -> tuple[Float[Array, "batch time width"], None]:
        """Returns the output and no state. ``state`` and ``at_boundary`` are ignored."""
        del state, at_boundary
        heads = (*x.shape[:2], self.num_heads, -1)
        query, key, value = (layer(x).reshape(heads) for layer in (self.query, self.key, self.value))
        return self.output(jax.nn.dot_product_attention(query, key, value).reshape(x.shape)), None


class VisionTransformer(nnx.Module):
    """Classifies images: ``logits = model(images)`` (Dosovitskiy et al., 2021).

    It has learned positions, pre-norm blocks with a SwiGLU MLP as in `LanguageModel`, and a head on the mean over the
    tokens. The module is a pytree of parameters, and a call never changes it.

    Args:
      image_size: pixels on each side of an image.
      patch_size: pixels on each side of a patch; must divide ``image_size``.
      channels: number of channels of the images.
      num_classes: number of classes, the size of the logits.
      width: width of the residual stream.
      num_layers: number of blocks.
      num_heads: number of attention heads.
      mlp_hidden: number of hidden units of each MLP.

    Raises:
      ValueError: for sizes that do not divide each other or are below 1.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from nl_jax.models import VisionTransformer
      >>> sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_hidden": 16, "num_classes": 10}
      >>> model = lambda x: VisionTransformer(image_size=8, patch_size=4, channels=1, **sizes, rngs=nnx.Rngs(0))(x)
      >>> jax.eval_shape(model, jnp.ones((3, 8, 8, 1))).shape  # logits of three images
      (3, 10)
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        channels: int,
        num_classes: int,
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_hidden: int,
        rngs: nnx.Rngs,
    ):
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise ValueError(f"patch_size={patch_size}: expected a divisor of image_size={image_size}")
        for name, value in (("num_layers", num_layers), ("channels", channels), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        self.patch_size, self.image_shape = patch_size, (image_size, image_size, channels)
        self.patch_embed = linear(patch_size**2 * channels, width, bias=0.0, rngs=rngs)
        tokens = (image_size // patch_size) ** 2
        self.position_embed = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, width)))
        scale = (2 * num_layers) ** -0.5

        def block(rngs: nnx.Rngs) -> Block:
            mixer = FullAttention(width, num_heads, output_scale=scale, rngs=rngs)
            return Block(width, mixer, ContinuumMemory(width, mlp_hidden, output_scale=scale, rngs=rngs), rngs=rngs)

        self.blocks = nnx.vmap(block, in_axes=0, out_axes=0)(rngs.split(num_layers))
        self.final_norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = linear(width, num_classes, bias=0.0, rngs=rngs)

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Returns the class logits of every image; ``ValueError`` for images of another shape."""
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images has shape {images.shape}; expected [batch, {expected}]")
        batch, size, _, channels = images.shape
        grid, patch = size // self.patch_size, self.patch_size
        patches = images.reshape(batch, grid, patch, grid, patch, channels).swapaxes(2, 3)
        x = self.patch_embed(patches.reshape(batch, grid**2, patch**2 * channels)) + self.position_embed[...]
        x, _ = jax.lax.scan(lambda x, block: block(x), x, self.blocks)
        return self.head(self.final_norm(x).mean(axis=1))
