"""A language model at work on many texts: what it has written and read is kept, so that nothing is done twice."""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cora.llm.writing import fingerprint, quality, text_vectors, write
from cora.prompts.thoughts import Decision

_BATCH = 32  # prompts written at once
_SEEDS = 2**31


class Cache:
    """Values by key in lines of the file cache.jsonl in a folder, which one process at a time has open.

    A line that was cut off when the process was killed counts as not there. Raises FileExistsError for a folder that
    holds other things or is a file, and where another process is inside.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "cache.jsonl"
        self._lock = FileLock(folder / ".lock")
        self._known: dict[str, Any] = {}

    def __enter__(self) -> "Cache":
        if self._folder.exists() and not self._folder.is_dir():
            raise FileExistsError(f"out: {self._folder} is a file")
        if self._folder.is_dir() and not self._file.is_file():
            if others := [one.name for one in self._folder.iterdir() if one.name != ".lock"]:
                raise FileExistsError(f"out: {self._folder} holds other things, {others[0]} for example")
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(f"out: another process writes in {self._folder}; wait for it to end") from None
        self._file.touch()
        for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                continue
            self._known[key] = value
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def add(self, values: dict[str, Any]) -> None:
        """What is there already stays as it is."""
        new = {key: value for key, value in values.items() if key not in self._known}
        with self._file.open("a", encoding="utf-8") as file:
            # The line break comes first: a line that was cut off does not take this one with it.
            file.write("".join(f"\n{json.dumps([key, value])}" for key, value in new.items()))
        self._known |= new


class Writer:
    """base: what makes vectors of texts. What is made is kept by a hash of the model, what it was given and how."""

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._base, self._tokenizer, self._cache = base, tokenizer, cache
        self._model = fingerprint(base)

    def texts(
        self,
        decisions: Sequence[Decision],
        generate: Callable[..., Tensor],
        called: str,
        new_tokens: int,
        candidates: int,
        seed: int,
        ends: float,
    ) -> list[str | None]:
        """The best of `candidates` texts for each decision, by `generate(rows, **kwargs)`, which is known by the name
        `called`; None for those that are not there when time.monotonic() is `ends`.

        Batches and their seeds are the same whatever of them is there already: a text does not hang on where the
        writing was stopped.
        """
        prompts = [one.prompt(self._tokenizer) for one in decisions]
        keys = [self._key("text", called, prompt, new_tokens, candidates, seed) for prompt in prompts]
        by_length = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
        batches = [by_length[start : start + _BATCH] for start in range(0, len(prompts), _BATCH)]
        # Where time runs out, texts of every length are there.
        order = np.random.default_rng(seed).permutation(len(batches))
        tokens, begun = 0, time.monotonic()
        with tqdm(total=len(prompts), desc="thoughts", unit="text") as bar:
            for rows in (batches[place] for place in order):
                if not all(keys[row] in self._cache for row in rows) and time.monotonic() < ends:
                    written = write(
                        lambda rows=rows, **kwargs: generate(rows, **kwargs),
                        self._tokenizer,
                        [prompts[row] for row in rows],
                        new_tokens,
                        candidates,
                        int(self._key(seed, *(keys[row] for row in rows)), 16) % _SEEDS,
                        self._base.device,
                    )
                    tokens += sum(one.tokens for of_row in written for one in of_row)
                    best = self._best([decisions[row] for row in rows], [[one.text for one in of] for of in written])
                    self._cache.add({keys[row]: text for row, text in zip(rows, best, strict=True)})
                    bar.set_postfix({"tokens/s": f"{tokens / (time.monotonic() - begun):.0f}"}, refresh=False)
                bar.update(len(rows))
        return [self._cache[key] if key in self._cache else None for key in keys]

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """The mean of the last hidden states over the tokens of each text, fp32 [n, h]."""
        keys = [self._key("vector", text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._cache}
        names, unread = list(missing), list(missing.values())
        with tqdm(total=len(unread), desc="vectors", unit="text", delay=2) as bar:
            for rows, found in text_vectors(self._base, self._tokenizer, unread):
                coded = [base64.b64encode(one.numpy().tobytes()).decode() for one in found]
                self._cache.add({names[row]: one for row, one in zip(rows, coded, strict=True)})
                bar.update(len(rows))
        read = [np.frombuffer(base64.b64decode(self._cache[key]), dtype=np.float32) for key in keys]
        return torch.from_numpy(np.stack(read))

    def _best(self, decisions: Sequence[Decision], texts: Sequence[Sequence[str]]) -> list[str]:
        """The candidate of highest `quality` of each decision, the first of several."""
        whole = [[Decision.completed(text) for text in of] for of in texts]
        found = []
        for decision, candidates in zip(decisions, whole, strict=True):
            best = candidates[0]
            if len(candidates) > 1:
                asked, said, *vectors = self.vectors([decision.told, decision.said, *candidates])
                scores = [quality(text, one, asked, said) for text, one in zip(candidates, vectors, strict=True)]
                best = candidates[int(np.argmax(scores))]
            found.append(best)
        return found

    def _key(self, *of: Any) -> str:
        return hashlib.sha256(json.dumps([self._model, *of]).encode()).hexdigest()
