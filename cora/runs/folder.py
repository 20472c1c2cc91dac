"""The folder that holds what a run makes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from cora.collaborative import CollaborativeEmbeddings
from cora.files import write_files
from cora.runs.distributed import is_main
from cora.runs.settings import RunConfig, load_settings


class RunFolder:
    """Where everything of a run lies. A file appears whole or not at all, so what is there need not be made again."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "config.yaml"
        self.embeddings = self.path / "embeddings.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.history = self.path / "history.json"
        self.baselines = self.path / "baselines.parquet"
        self.predictions = self.path / "predictions.parquet"
        self.metrics = self.path / "metrics.json"
        self.picture = self.path / "training.png"
        self.gates = self.path / "gates.png"
        self.titles = self.path / "titles.safetensors"
        self._lock = self.path / ".lock"

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """Raises FileNotFoundError unless a finished run is there."""
        run = cls(path)
        if not run.settings.is_file():
            raise FileNotFoundError(f"run: {path} is not the folder of a run, {run.settings.name} is missing")
        if not run.metrics.is_file():
            raise FileNotFoundError(f"run: the training in {path} has not finished; `cora train` goes on with it")
        return run

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[None]:
        """Records the settings; while one process is inside, others are refused.

        Raises FileExistsError for those, and for a folder that holds other things or a run of other settings.
        """
        self._refuse_other_things()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(
                f"out: another process trains in {self.path}; wait for it to end, or choose another folder"
            ) from None
        try:
            self._record(config)
            yield
        finally:
            lock.release()

    def _record(self, config: RunConfig) -> None:
        if not self.settings.is_file():
            self.write(self.settings, yaml.safe_dump(_plain(config), sort_keys=False))
            return
        now, then = _plain(config), _plain(self.config())
        if other := [f"{name} {then[name]!r}, now {now[name]!r}" for name in now if now[name] != then[name]]:
            raise FileExistsError(f"out: {self.path} holds a run with other settings: {'; '.join(other)}")

    def _refuse_other_things(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"out: {self.path} is a file")
        if self.settings.is_file() or not self.path.is_dir():
            return
        if any(file != self._lock for file in self.path.iterdir()):
            raise FileExistsError(f"out: {self.path} is not empty and holds no run")

    def config(self) -> RunConfig:
        return RunConfig.from_dict(load_settings(self.settings))

    def vectors(self) -> CollaborativeEmbeddings:
        """The collaborative vectors of the run: a copy of those in the file that its settings name, or its own."""
        return CollaborativeEmbeddings.load(self.embeddings)

    def write(self, path: Path, content: str | pd.DataFrame) -> None:
        """Text as it is, a frame as parquet; by the main process alone."""
        if not is_main():
            return
        if isinstance(content, str):
            write_files(path.parent, {path.name: lambda file: file.write_text(content, encoding="utf-8")})
        else:
            write_files(path.parent, {path.name: lambda file: content.to_parquet(file, index=False)})


def _plain(config: RunConfig) -> dict[str, Any]:
    """The settings as a file holds them."""
    return dict(json.loads(json.dumps(asdict(config))))
