"""XLA's flags, and with them a workaround for a fault of it on CPU; all before JAX first asks for devices."""

import os


def set_default_flag(name: str, value: str) -> None:
    """Sets a flag of XLA in ``XLA_FLAGS``, where a value that the user has set is left alone."""
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def disable_faulty_fusions() -> None:
    """Turns off YNNPACK fusions on CPU: fused reductions read memory that nothing wrote (BUILD_NOTES.md, D54)."""
    set_default_flag("xla_cpu_experimental_ynn_fusion_type", "")
