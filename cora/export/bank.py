"""A bank of PEFT adapters: many users' LoRA on one base model, used and trained side by side in one batch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cora.export.adapter import CONFIG, Adapter, Factors, load_adapter, save_adapter
from cora.llm.deltas import Delta
from cora.llm.linears import linear_sizes


class AdapterBank(nn.Module):
    """y_i = x_i·Wᵀ + s_n·(x_i·A_n)·B_n for sample i of adapter n: A [n, K, r] and B [n, r, N] of every linear, trained.

    >>> bank = cora.load_bank("adapters", model)
    >>> patch = cora.patch(model, bank.linears)
    patched 2 linears of LlamaForCausalLM
    ...
    >>> patch.set_deltas(bank.deltas(["ann", "bo", None, "ann"]))  # None: the base model
    >>> model(input_ids).logits.sum().backward()
    >>> bank.save_pretrained("trained")

    r is the largest rank that a linear has in any adapter; smaller ones are followed by zeros, which get no gradient
    and stay zero. A linear that an adapter has not is all zeros there, and stays so too. Made by `load_bank`.
    """

    scalings: Tensor

    def __init__(self, adapters: Mapping[str, Adapter], model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: it is no part of the bank
        self._row = {name: row for row, name in enumerate(adapters)}
        self._base_models = [adapter.base_model for adapter in adapters.values()]
        self._ranks: dict[str, list[int]] = {}
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        # Linears of the same scalings share a row of these, and siblings among them a call of the op.
        rows: dict[tuple[float, ...], int] = {}
        self._scaling: dict[str, int] = {}
        for linear in (name for name in linear_sizes(model) if any(name in one.factors for one in adapters.values())):
            factors = [adapter.factors.get(linear) for adapter in adapters.values()]
            self._ranks[linear] = [0 if one is None else one.lora_a.shape[1] for one in factors]
            # r before K, as in lora_B, while zeros are put behind the ranks.
            lora_a = _stacked([None if one is None else one.lora_a.t() for one in factors])
            self.lora_a[_key(linear)] = lora_a.mT.contiguous()
            self.lora_b[_key(linear)] = _stacked([None if one is None else one.lora_b for one in factors])
            scaling = tuple(0.0 if one is None else one.scaling for one in factors)
            self._scaling[linear] = rows.setdefault(scaling, len(rows))
        self._exact = list(rows)
        device = next(self.parameters()).device
        self.register_buffer("scalings", torch.tensor(self._exact, device=device), persistent=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order of their rows."""
        return tuple(self._row)

    @property
    def linears(self) -> tuple[str, ...]:
        """The full names of the linears that any of them adapts: `target_modules` of cora.patch."""
        return tuple(self._scaling)

    def deltas(self, names: Sequence[str | None]) -> dict[str, Delta]:
        """What `Patch.set_deltas` takes for a batch: the adapter of each sample by name, None for the base model's
        output; with gradients to the bank.

        Raises ValueError for a name that is not in the bank, and for no names.
        """
        if isinstance(names, str) or not names:
            raise ValueError(f"names: expected the adapter of each sample, got {names!r}")
        if unknown := [name for name in names if name is not None and name not in self._row]:
            raise ValueError(f"names: {unknown[0]!r} is not in the bank of {', '.join(self.names)[:150]}")
        device = self.scalings.device
        rows = torch.tensor([0 if name is None else self._row[name] for name in names], device=device)
        used = torch.tensor([name is not None for name in names], device=device)
        scalings = [row[rows] * used for row in self.scalings]
        return {
            linear: Delta(self.lora_a[_key(linear)][rows], self.lora_b[_key(linear)][rows], scalings[row])
            for linear, row in self._scaling.items()
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes every adapter into a folder of its name in `folder`, in PEFT's format, with the ranks it came with."""
        for name, row in self._row.items():
            save_adapter(Path(folder) / name, Adapter(dict(self._factors(row)), self._base_models[row]), self._model[0])

    def _factors(self, row: int) -> Iterator[tuple[str, Factors]]:
        for linear, ranks in self._ranks.items():
            if rank := ranks[row]:
                lora_a, lora_b = (bank[_key(linear)][row].detach() for bank in (self.lora_a, self.lora_b))
                yield linear, Factors(lora_a[:, :rank], lora_b[:rank], self._exact[self._scaling[linear]][row])


def load_bank(adapters: str | Path | Sequence[str | Path], model: nn.Module) -> AdapterBank:
    """A bank of the PEFT adapters in a folder, each a folder with adapter_config.json and adapter_model.safetensors,
    named as that is; or of a list of such folders. model: the base model, patched or not.

    Raises FileNotFoundError where no adapter is, ValueError for one that is more than LoRA on linears of this model
    (see `load_adapter`) and for two of one name, TypeError for a model or folders that are none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if isinstance(adapters, str | Path):
        folders = _folders(Path(adapters))
    elif isinstance(adapters, Sequence) and all(isinstance(one, str | Path) for one in adapters):
        folders = [Path(one) for one in adapters]
    else:
        raise TypeError(f"adapters: expected a folder or a list of folders, got {adapters!r:.150}")
    if not folders:
        raise FileNotFoundError(f"adapters: no folder with {CONFIG} in {adapters}")
    names = [folder.absolute().name for folder in folders]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"adapters: two are named {repeated[0]!r}; names are those of their folders")
    sizes = linear_sizes(model)
    return AdapterBank({name: load_adapter(folder, sizes) for name, folder in zip(names, folders, strict=True)}, model)


def _folders(folder: Path) -> list[Path]:
    """The adapter that is there, or those in it."""
    if (folder / CONFIG).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))


def _stacked(matrices: Sequence[Tensor | None]) -> Tensor:
    """[n, r, width] of matrices [≤ r, width], with zeros behind them; None is all zeros."""
    present = [one for one in matrices if one is not None]
    stacked = present[0].new_zeros(len(matrices), max(len(one) for one in present), present[0].shape[1])
    for row, one in zip(stacked, matrices, strict=True):
        if one is not None:
            row[: len(one)] = one
    return stacked


def _key(linear: str) -> str:
    """A module's name as the name of a parameter, which may hold no dot."""
    return linear.replace(".", "/")
