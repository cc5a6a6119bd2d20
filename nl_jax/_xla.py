"""XLA flags, and a workaround for a fault of XLA on CPU. Call these functions before JAX first asks for devices."""

import os


def set_default_flag(name: str, value: str) -> None:
    """Sets a flag in ``XLA_FLAGS``, unless the user has set it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def disable_faulty_fusions() -> None:
    """Turns off YNNPACK fusions on CPU: their fused reductions read uninitialised memory (BUILD_NOTES.md, D54)."""
    set_default_flag("xla_cpu_experimental_ynn_fusion_type", "")
