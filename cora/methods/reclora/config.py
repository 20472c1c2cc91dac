"""RecLoRAConfig: the knobs of the method, as published where that is said."""

from dataclasses import dataclass
from typing import ClassVar

from cora.generators.gated import GatedGenerator, GatedOptions
from cora.methods.config import GeneratedConfig


@dataclass
class RecLoRAConfig(GeneratedConfig):
    """y = x·Wᵀ + (alpha / r) · (dropout(x) · Σ α_k·A_k) · Σ α_k·B_k: the fields of MethodConfig and PairConfig, and

    meta_loras, mix, gate_width, gate_temperature, gate_top, generator_dropout
                 as the generator "gated" has them (see its Options class)

    r 8, alpha 16, no dropout on q and v, 8 meta-LoRAs and gates of width 60 are the authors'; they have also 16
    meta-LoRAs, and temperatures of 5 to 15, at which the weights stay near one another.

    Raises TypeError or ValueError that names the field.
    """

    method: ClassVar[str] = "reclora"

    r: int = 8
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    meta_loras: int = GatedOptions.meta_loras
    mix: str = GatedOptions.mix
    gate_width: int = GatedOptions.gate_width
    gate_temperature: float = GatedOptions.gate_temperature
    gate_top: int = GatedOptions.gate_top
    generator_dropout: float = GatedOptions.generator_dropout

    def __post_init__(self) -> None:
        super().__post_init__()
        options = self.options  # which checks them
        if options.gate_top > options.meta_loras:
            raise ValueError(f"gate_top: expected at most meta_loras {self.meta_loras}, got {self.gate_top}")

    @property
    def generator_class(self) -> type[GatedGenerator]:
        return GatedGenerator

    @property
    def options(self) -> GatedOptions:
        return GatedOptions(
            self.meta_loras,
            self.mix,
            self.gate_width,
            self.gate_temperature,
            self.gate_top,
            self.generator_dropout,
        )
