"""Writers of parts whose processes are killed, in a module that processes of Ray can import."""

import os
import signal
from pathlib import Path
from typing import Any

from cora.runs import recommend_all


class KilledWriter(recommend_all._PartWriter):
    """Its process is killed at three parts, at each once: before the part is written, within, and right behind."""

    def __call__(self, path: Path, users: list[Any]) -> None:
        moment = {"000000080": "before", "000000400": "within", "000000960": "behind"}.get(path.stem)
        mark = path.parent.parent / f"killed-{moment}"
        if moment is None or mark.exists():
            super().__call__(path, users)
            return
        mark.write_text(str(os.getpid()))
        if moment == "within":
            path.with_name(f".{path.name}.partial").write_bytes(b"PAR1")
        if moment == "behind":
            super().__call__(path, users)
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyWriter(recommend_all._PartWriter):
    """No process outlives one of its parts."""

    def __call__(self, path: Path, users: list[Any]) -> None:
        if path.stem == "000000400":
            with (path.parent.parent / "tries").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        super().__call__(path, users)
