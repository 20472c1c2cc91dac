"""CoRAConfig: every knob of the method, checked, to and from JSON."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from cora.checks import check_choice, check_flag, check_int
from cora.generators.generator import Generator
from cora.generators.options import GENERATORS, check_option, generator_class, option_names, options_of
from cora.methods.config import GeneratedConfig


@dataclass(init=False)
class CoRAConfig(GeneratedConfig):
    """y = x·Wᵀ + (alpha / r) · (dropout(x) · A(u, i)) · P: the fields of MethodConfig and PairConfig, and

    generator          what makes the deltas of the vectors of user and item: "mlp" (small), "qformer" (as published),
                       "per_layer" (an A of its own for every layer and module) or "gated" (A and B mixed from a few
                       learned LoRAs, as in RecLoRA)
    shared_prefix      whether the prompt up to the title asked about is adapted by A(u, mean item), the rest by
                       A(u, i), so that all prompts of one history share their beginning and its cost; false: all of it
                       is adapted by A(u, i), as published
    targets_per_prompt with shared_prefix: rows of one user and day, at most, that share a beginning in training, the
                       history as of the first of them; a batch has as many tokens as batch_size prompts then
    shared_rank        rank of a plain LoRA beside the generated part, [A0 | A(u, i)] and [P0 ; P], A0 and P0 learned
                       and the same for all samples; 0 for none, as published
    generator_options  the options of the generator by name (see its Options class). Each is also taken as a field:
                       CoRAConfig(generator="qformer", num_queries=2), config.num_queries. Those of a generator that is
                       not the chosen one are checked and kept.

    Raises TypeError or ValueError that names the field.
    """

    method: ClassVar[str] = "cora"

    generator: str = "mlp"
    shared_prefix: bool = False
    targets_per_prompt: int = 8
    shared_rank: int = 0
    generator_options: dict[str, Any] = field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        known = {one.name: one.default for one in fields(self)}
        given = {**values.pop("generator_options", {}), **{name: values[name] for name in values if name not in known}}
        for name, default in known.items():
            setattr(self, name, values.get(name, default))
        check_choice("generator", self.generator, tuple(GENERATORS))
        check_flag("shared_prefix", self.shared_prefix)
        check_int("targets_per_prompt", self.targets_per_prompt, at_least=1)
        check_int("shared_rank", self.shared_rank, at_least=0)
        for name, value in given.items():
            if name not in option_names():
                raise TypeError(f"{name}: neither a field of CoRAConfig nor an option of a generator")
            check_option(name, value)
        self.generator_options = options_of(self.generator) | given
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        """An option of a generator: as given, or its default."""
        if not name.startswith("_") and (owners := option_names().get(name)):
            options: dict[str, Any] = self.generator_options
            return options[name] if name in options else options_of(owners[0])[name]
        raise AttributeError(f"CoRAConfig has no field {name!r}")

    @property
    def splits_prompts(self) -> bool:
        return self.shared_prefix

    @property
    def family_size(self) -> int:
        return self.targets_per_prompt

    @property
    def generator_class(self) -> type[Generator]:
        return generator_class(self.generator)

    @property
    def options(self) -> Any:
        made = self.generator_class.Options
        return made(**{one.name: self.generator_options[one.name] for one in fields(made)})

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        options = values.pop("generator_options")
        return values | options

    @classmethod
    def field_names(cls) -> list[str]:
        return [*super().field_names(), *option_names()]
