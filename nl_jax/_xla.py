"""Works around a fault of XLA on CPU; must be imported before JAX first asks for devices."""

import os

_FLAG = "xla_cpu_experimental_ynn_fusion_type"


def disable_faulty_fusions() -> None:
    """Turns off YNNPACK fusions on CPU, which read memory that nothing wrote in fused reductions (BUILD_NOTES.md).

    A value that the user has set in ``XLA_FLAGS`` is left alone.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}=".strip()
