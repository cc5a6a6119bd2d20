"""Everything that the packages export, by its full name."""

import importlib
import pkgutil

import nl_jax

PACKAGES = ("nl_jax", *(found.name for found in pkgutil.walk_packages(nl_jax.__path__, "nl_jax.") if found.ispkg))
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in map(importlib.import_module, PACKAGES)
    for name in package.__all__
}
