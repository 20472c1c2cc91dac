"""The table of generators, and their options by name."""

from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any

from cora.generators.generator import Generator

# name -> module:class, loaded on first use. No two generators may give one option name two meanings.
GENERATORS = {
    "mlp": "cora.generators.mlp:MLPGenerator",
    "qformer": "cora.generators.qformer:QFormerGenerator",
    "per_layer": "cora.generators.per_layer:PerLayerGenerator",
    "gated": "cora.generators.gated:GatedGenerator",
}


@cache
def generator_class(name: str) -> type[Generator]:
    """The generator of that name. Raises ValueError for a name that GENERATORS does not have."""
    if name not in GENERATORS:
        raise ValueError(f"generator: expected one of {', '.join(GENERATORS)}, got {name!r}")
    module, _, found = GENERATORS[name].partition(":")
    loaded: type[Generator] = getattr(import_module(module), found)
    return loaded


def options_of(name: str) -> dict[str, Any]:
    """The options of a generator with their defaults."""
    return {one.name: one.default for one in fields(generator_class(name).Options)}


@cache
def option_names() -> dict[str, tuple[str, ...]]:
    """Every option of every generator, and the generators that have it."""
    owners: dict[str, tuple[str, ...]] = {}
    for name in GENERATORS:
        for option in options_of(name):
            owners[option] = (*owners.get(option, ()), name)
    return owners


def check_option(name: str, value: Any) -> None:
    """Raises what the generators that have this option raise of the value."""
    for owner in option_names()[name]:
        generator_class(owner).Options(**{name: value})
