"""`python -m bench.permuted compare --methods reclora permuted ...`: the command `cora` with one more method.

`permuted`, a control, is RecLoRA whose gate reads the pair of the next sample of the batch, in training and in
scoring. What it reaches owes nothing to the vectors, and should be what a plain LoRA reaches.
"""

import sys
from typing import ClassVar

from torch import Tensor

from cora.methods import METHODS, Method
from cora.methods.reclora.config import RecLoRAConfig
from cora.methods.reclora.model import RecLoRAModel
from cora.methods.samples import Samples


class PermutedConfig(RecLoRAConfig):
    method: ClassVar[str] = "permuted"


class PermutedModel(RecLoRAModel):
    Config: ClassVar[type[RecLoRAConfig]] = PermutedConfig

    def pair(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        e_u, e_i, affinity = super().pair(samples)
        return e_u.roll(1, 0), e_i.roll(1, 0), affinity.roll(1, 0)


# Before the settings are imported, which take the names of methods from here.
METHODS["permuted"] = Method("RecLoRA, c of others", "bench.permuted:PermutedConfig", "bench.permuted:PermutedModel")

if __name__ == "__main__":
    from cora.cli import main

    sys.exit(main(sys.argv[1:]))
