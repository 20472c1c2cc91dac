"""`make gpu` without a GPU: every stage on a stand-in for one, whose kernels Triton interprets on the CPU.

`TRITON_INTERPRET=1 python tests/bench/rehearsal.py FOLDER`
"""

import sys

import torch

from bench.gpu.__main__ import main
from cora_kernels.planning.gpus import GPUS, Gpu


class StandIn:
    device = torch.device("cpu")
    dtype = torch.float16  # the interpreter has no bfloat16
    scale = 128
    rehearses = True

    def name(self) -> str:
        return "Stand-in for an H100"

    def gpu(self) -> Gpu:
        return GPUS["A100"]

    def usable(self) -> list[str]:
        return ["triton"]

    def seconds(self, run) -> float:
        run()
        return 1e-3

    def eager_seconds(self, run) -> float:
        run()
        return 2e-3

    def captured(self, run):
        run()
        return run

    def on_side_stream(self, run):
        return run()

    def others(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def synchronize(self) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main(["--out", sys.argv[1]], StandIn()))
