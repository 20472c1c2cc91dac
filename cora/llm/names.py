"""What the names of a model's modules say."""


def fits(name: str, end: str) -> bool:
    """Whether a module's name is `end` or ends so, at a dot."""
    return name == end or name.endswith("." + end)


def layer_index(name: str) -> int | None:
    """The first number in a module's name: model.layers.3.self_attn.q_proj is of layer 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
