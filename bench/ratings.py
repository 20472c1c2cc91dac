"""25 million generated ratings to the first step of `cora train`: seconds and peak memory of the whole process.

    python -m bench.ratings [parquet|csv] [millions]

About as many users, items and ratings as MovieLens-25M has. The file lies in build/ afterwards. What is measured is
what comes before training: reading, splitting, the vectors of all training rows, histories and prompts of those drawn.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

USERS, ITEMS = 162_000, 60_000
# Makes the first step the last of the process. What comes after it is training, whose speed is measured elsewhere.
_UNTIL_FIRST_STEP = """
import sys
from cora.cli import main
from cora.runs.fit import FiniteTrainer
FiniteTrainer.training_step = lambda *_, **__: sys.exit(0)
main(sys.argv[1:])
"""


def generated(path: Path, rows: int) -> None:
    """user_id, item_id, rating, timestamp and title, in time order."""
    random = np.random.default_rng(0)
    items = np.minimum((random.pareto(1.0, rows) * 300).astype(np.int64), ITEMS - 1)
    users = np.minimum((random.pareto(1.2, rows) * 9000).astype(np.int64), USERS - 1)
    taste = random.normal(size=ITEMS)[items] + 0.5 * random.normal(size=USERS)[users]
    columns: dict[str, Any] = {
        "user_id": users,
        "item_id": items,
        "rating": np.where(random.random(rows) < 1 / (1 + np.exp(-taste)), 5, 2).astype(np.float32),
        "timestamp": 1_000_000_000 + np.sort(random.integers(0, 300_000_000, rows)),
        "title": pa.DictionaryArray.from_arrays(
            items.astype(np.int32), [f"Film number {item} ({1900 + item % 100})" for item in range(ITEMS)]
        ),
    }
    path.parent.mkdir(exist_ok=True)
    part = path.with_name("part-" + path.name)
    write = pa.csv.write_csv if path.suffix == ".csv" else pa.parquet.write_table
    write(pa.table(columns), part)
    part.rename(path)


def main(form: str = "parquet", millions: int = 25) -> None:
    path = Path("build") / f"ratings-{millions}m.{form}"
    if not path.exists():
        generated(path, millions * 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        settings = f"--data {path} --out {folder}/run --model smollm2-135m --steps 1 --valid-rows 64 --test-rows 64"
        command = [sys.executable, "-c", _UNTIL_FIRST_STEP, "train", *settings.split()]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{path}: {wall:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU time, {used.ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
