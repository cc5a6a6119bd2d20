"""The names of the axes of every parameter of this project's models.

The names are stored here by path, not on the parameters. The sharding of parameters, weight decay and M3's choice of
matrices all read this one table.
"""

import re

Names = tuple[str | None, ...]

# Path of a parameter (a regular expression for its end) -> names of its axes. The first row that matches applies.
PARAMETER_AXES: tuple[tuple[str, Names], ...] = (
    (r"embed\.embedding", ("vocab", "embed")),
    (r"unembed\.kernel", ("embed", "vocab")),
    (r"final_norm\.scale", ("embed",)),
    (r"blocks\.mixer_norm\.scale", ("layers", "embed")),
    (r"blocks\.mixer\.output\.kernel", ("layers", "heads", "embed")),
    (r"blocks\.mixer\.(output|query|key)_norm\.scale", ("layers", "head_dim")),
    (r"blocks\.mixer\.conv\.kernel", ("layers", "taps", "embed")),
    (r"blocks\.mixer\.(query|key|value|(eta|alpha|mu)\.linear)\.kernel", ("layers", "embed", "heads")),
    (r"blocks\.mixer\.(\w+_read|ridge)", ("layers", "heads", "head_dim")),
    (r"blocks\.mixer\.(\w+_bias|\w+\.linear\.bias|(query|key|value)\.bias)", ("layers", "heads")),
    (r"blocks\.mixer\.memory_gates", ("layers", "heads", "memories")),
    (r"blocks\.mixer\.memories\.\d+\.layers\.0", ("layers", "heads", "embed", "memory_hidden")),
    (r"blocks\.mixer\.memories\.\d+\.layers\.\d+", ("layers", "heads", "memories", "memory_hidden", "embed")),
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
    """Names of the axes of the array at ``path`` (a `path_name`), or None if no row of the table matches."""
    return next((names for pattern, names in table if re.search(rf"(^|\.)({pattern})$", path)), None)
