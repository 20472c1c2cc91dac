"""Generators: modules that make the delta of every adapted linear of the vectors of a user and an item."""

from cora.generators.generator import Generator, Linears
from cora.generators.options import GENERATORS, generator_class
from cora.generators.pairs import Pairs

__all__ = ["GENERATORS", "Generator", "Linears", "Pairs", "generator_class"]
