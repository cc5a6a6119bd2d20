"""The names of the axes of every parameter of this project's models.

The names are stored here by path, not on the parameters. The sharding of parameters, weight decay and M3's choice of
matrices all read this one table.
"""

import re

Names = tuple[str | None, ...]

_MIXER = r"blocks\.mixer(\.attention|\.memory)?"  # a mixer of two parts has both

# Path of a parameter (a regular expression for its end) -> names of its axes. The first row that matches applies.
PARAMETER_AXES: tuple[tuple[str, Names], ...] = (
    (r"embed\.embedding", ("vocab", "embed")),
    (r"unembed\.kernel", ("embed", "vocab")),
    (r"final_norm\.scale", ("embed",)),
    (r"blocks\.mixer_norm\.scale", ("layers", "embed")),
    (_MIXER + r"\.output\.kernel", ("layers", "heads", "embed")),
    (_MIXER + r"\.(output|query|key)_norm\.scale", ("layers", "head_dim")),
    (_MIXER + r"\.conv\.kernel", ("layers", "taps", "embed")),
    (_MIXER + r"\.(query|key|value|(eta|alpha|mu)\.linear)\.kernel", ("layers", "embed", "heads")),
    (_MIXER + r"\.(\w+_read|ridge|removal_scale|write_mix)", ("layers", "heads", "head_dim")),
    (_MIXER + r"\.(feedback|correction)", ("layers", "heads")),
    (_MIXER + r"\.powers", ("layers", "heads", None)),
    (_MIXER + r"\.(gates|recurrent)\.kernel", ("layers", "embed", "heads")),
    (_MIXER + r"\.(retention|rate)\.down\.kernel", ("layers", "embed", "rank")),
    (_MIXER + r"\.(retention|rate)\.up\.kernel", ("layers", "rank", "heads")),
    (_MIXER + r"\.(\w+_bias|\w+\.(linear|up)\.bias|(query|key|value|gates)\.bias)", ("layers", "heads")),
    (_MIXER + r"\.memory_gates", ("layers", "heads", "memories")),
    (_MIXER + r"\.memories\.\d+\.layers\.0", ("layers", "heads", "embed", "memory_hidden")),
    (_MIXER + r"\.memories\.\d+\.layers\.\d+", ("layers", "heads", "memories", "memory_hidden", "embed")),
    (r"blocks\.cms\.levels\.\d+\.norm\.scale", ("layers", "embed")),
    (r"blocks\.cms\.levels\.\d+\.(gate|up)\.kernel", ("layers", "embed", "hidden")),
    (r"blocks\.cms\.levels\.\d+\.down\.kernel", ("layers", "hidden", "embed")),
    (r"blocks\.cms\.mixture", ("layers", "levels")),
    (r"cms_log_rate", ("levels",)),
    # the decoder of `AutoEncoder`
    (r"linears\.\d+\.kernel", ("embed", "hidden")),
    (r"linears\.\d+\.bias", ("hidden",)),
    (r"norms\.\d+\.scale", ("embed",)),
)


def logical_axes(path: str, table: tuple[tuple[str, Names], ...] = PARAMETER_AXES) -> Names | None:
    """Names of the axes of the array at ``path`` (a `path_name`), or None if no row of the table matches.

    Examples:
      >>> from nl_jax.training import logical_axes
      >>> logical_axes("embed.embedding"), logical_axes("no.such.parameter")
      (('vocab', 'embed'), None)
    """
    return next((names for pattern, names in table if re.search(rf"(^|\.)({pattern})$", path)), None)
