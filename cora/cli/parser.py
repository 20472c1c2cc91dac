"""The options of the command `cora`, and their help."""

import argparse
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, get_type_hints

from cora.cli import commands
from cora.codes import Recipe
from cora.codes.vectors import VECTORS
from cora.generators import GENERATORS, generator_class
from cora.methods import METHODS
from cora.methods.config import AdapterConfig, MethodConfig
from cora.runs.settings import RunConfig, value_of


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="cora", description="A language model that recommends to each user by weights of their own."
    )
    subparsers = made.add_subparsers(required=True, metavar="COMMAND")

    train = subparsers.add_parser(
        "train",
        help="train a method, compare it with its parts, save it",
        description="Trains a method on interactions and leaves a folder with settings, metrics.json, predictions, a "
        "picture and the model. The same command again goes on where it was stopped.",
        epilog=_fields_of_methods(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(train, "folder of the run")
    train.set_defaults(command=commands.train_command)

    fit = subparsers.add_parser(
        "fit",
        help="train collaborative vectors alone and write them to a file",
        description="Trains a collaborative model, writes its vectors of users and items, and what makes a user's "
        "vector from their past, to a file that `cora train --embeddings` takes, and prints how well they rank the "
        "validation rows: rows of the users' table, and vectors of the users' past.",
    )
    fit.add_argument("--out", required=True, metavar="FILE", help="safetensors file that is written")
    _add_fields(fit, commands.OF_VECTORS)
    fit.set_defaults(command=commands.fit_command)

    thoughts = subparsers.add_parser(
        "thoughts",
        help="have a language model write why users liked or disliked items, for the method llmcf",
        description="Writes chains of thought for training rows spread evenly over time, each knowing what its user "
        "rated before and the row's own label, and the vectors of these texts and of the items. The same command again "
        "goes on where it was stopped.",
    )
    thoughts.add_argument("--out", required=True, metavar="FOLDER", help="folder of the texts and their vectors")
    thoughts.add_argument("--rows", required=True, type=int, metavar="N", help="training rows that get a text")
    thoughts.add_argument(
        "--cot", default="llm", choices=("llm", "template"),
        help="texts by the language model and by a template of counts, or by that alone (default: llm)",
    )  # fmt: skip
    thoughts.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens of a text (default: 64)")
    thoughts.add_argument(
        "--candidates", type=int, default=1, metavar="N", help="texts written, of which the best is kept (default: 1)"
    )
    thoughts.add_argument(
        "--max-minutes", type=float, metavar="N", help="writing ends after this time; rows without a text are left out"
    )
    thoughts.add_argument(
        "--run", metavar="FOLDER", help="a finished run whose model writes, adapted to each row's user and item"
    )
    _add_fields(thoughts, commands.OF_THOUGHTS)
    thoughts.set_defaults(command=commands.thoughts_command)

    index = subparsers.add_parser(
        "index",
        help="make codes of the items, for train --method lcrec",
        description="Gives every item of the data a short code that no other has, of its title, of who did something "
        "with it in the training rows, or of both; prints how good the codes are, and writes them to a folder that "
        "`cora train --method lcrec --cora index=FOLDER` takes.",
        epilog=f"Recipe, for --recipe:\n{inspect.getdoc(Recipe)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    index.add_argument("--out", required=True, metavar="FOLDER", help="folder that is written")
    index.add_argument(
        "--vectors", default="both", choices=VECTORS,
        help="what the codes are made of; random for codes that tell nothing, to compare with (default: both)",
    )  # fmt: skip
    _add_pairs(index, "recipe", "how the codes are made (below)")
    _add_fields(index, commands.OF_CODES)
    index.set_defaults(command=commands.index_command)

    compare = subparsers.add_parser(
        "compare",
        help="train several methods for several seeds, one table of all",
        description="Trains every method for every seed on the same rows, each in a folder below --out, and prints "
        "means, spreads and, paired by user, intervals of the first method's lead. The same command again goes on "
        "where it was stopped. --method and --seed do not count; a field of --cora does for the methods that have it.",
        epilog=_fields_of_methods(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument(
        "--methods", required=True, nargs="+", metavar="METHOD[:NAME=VALUE,...]",
        help="methods, each with fields of its own configuration: cora cora:offset=true tallrec; and with "
        "history and similarity: cora:history=similar",
    )  # fmt: skip
    compare.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="seeds (default: 0)")
    _add_settings(compare, "folder for the runs and comparison.json")
    compare.set_defaults(command=commands.compare_command)

    evaluate = subparsers.add_parser("evaluate", help="score labelled rows by a trained run and print the metrics")
    evaluate.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
    evaluate.add_argument("--data", metavar="NAME", help="other data than the run's, in any form `cora train` takes")
    evaluate.add_argument(
        "--part", default="test", choices=("train", "valid", "test"), help="part of the data (default: test)"
    )
    evaluate.add_argument(
        "--rows", type=int, default=0, metavar="N", help="rows drawn at random (default: 0, all of them)"
    )
    evaluate.add_argument("--scores", metavar="FILE", help="also write every row's scores there, as parquet")
    evaluate.add_argument("--json", metavar="FILE", help="also write the metrics there")
    evaluate.set_defaults(command=commands.evaluate_command)

    score = subparsers.add_parser("score", help="recommend items to one user")
    score.add_argument("--user", required=True, metavar="ID", help="user id as in the data")
    score.set_defaults(command=commands.score_command)
    recommend = subparsers.add_parser(
        "recommend",
        help="recommend items to many users, into a table",
        description="Ranks items for every user of a file and writes a parquet file. The same command again goes on "
        "where it was stopped.",
    )
    recommend.add_argument("--users", required=True, metavar="FILE", help="text file, one user id a line")
    recommend.add_argument("--out", required=True, metavar="FILE", help="parquet file to write")
    recommend.add_argument(
        "--ray", metavar="ADDRESS",
        help="divide the users among the machines of a Ray cluster: its address, `auto` for the one that this machine "
        "is in, `local` for one of this machine alone; needs the extra `ray`",
    )  # fmt: skip
    recommend.set_defaults(command=commands.recommend_command)
    for one in (score, recommend):
        one.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
        one.add_argument("--top", type=int, default=10, metavar="N", help="items for each user (default: 10)")
        one.add_argument(
            "--candidates", type=int, default=100, metavar="N",
            help="unseen items that the method ranks: the best by the collaborative vectors, or by lcrec's beam, which "
            "is so wide (default: 100)",
        )  # fmt: skip

    explain = subparsers.add_parser("explain", help="what the delta of a user and an item changes, layer by layer")
    explain.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
    explain.add_argument("--user", required=True, metavar="ID", help="user id as in the data")
    explain.add_argument("--item", required=True, metavar="ID", help="item id as in the data")
    explain.add_argument(
        "--neighbours", type=int, default=10, metavar="N", help="users printed whose A is most alike (default: 10)"
    )
    explain.set_defaults(command=commands.explain_command)

    export = subparsers.add_parser(
        "export",
        help="write what a run is for a user, or a user and an item, as PEFT adapters; or a model that has none",
        description="Writes the deltas of users and items as standard LoRA adapters, for PEFT and what reads its "
        "format. One user and at most one item: FOLDER is the adapter. More: a folder in it for every pair of them. "
        "A run of llmcf is written as a program of torch.export, NAME.pt2.",
    )
    export.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
    export.add_argument(
        "--user", nargs="+", default=[], metavar="ID", help="user ids as in the data; none for a run of llmcf"
    )
    export.add_argument(
        "--item", nargs="+", default=[], metavar="ID", help="item ids as in the data (default: the mean of all items)"
    )
    export.add_argument("--out", required=True, metavar="FOLDER", help="folder of the adapter, or of the adapters")
    export.set_defaults(command=commands.export_command)

    serve = subparsers.add_parser(
        "serve",
        help="serve a run over HTTP: scores, recommendations, a page",
        description="Answers POST /score and POST /recommend, GET /health, /metrics and /openapi.json, and shows a "
        "page at /. Requests that come while a batch is scored are the next batch. What does not fit into the queue or "
        "is not answered by its deadline gets a 503 with Retry-After.",
    )
    serve.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
    serve.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="port, 0 for a free one (default: 8000)")
    serve.add_argument("--queue", type=int, default=128, metavar="N", help="requests that wait (default: 128)")
    serve.add_argument("--batch-prompts", type=int, default=256, metavar="N", help="prompts in a batch (default: 256)")
    serve.add_argument(
        "--deadline", type=float, default=30.0, metavar="N", help="seconds for a request at most (default: 30)"
    )
    serve.set_defaults(command=commands.serve_command)

    info = subparsers.add_parser(
        "info", help="versions, usable kernels, named data and models; or a run's settings and metrics"
    )
    info.add_argument(
        "--run",
        nargs="+",
        metavar="FOLDER",
        help="folder of a finished run; several that scored the same rows make one table",
    )
    info.set_defaults(command=commands.info_command)
    return made


def _add_settings(parser: argparse.ArgumentParser, out: str) -> None:
    """The options that are fields of RunConfig; out: what --out is."""
    parser.add_argument("--out", required=True, metavar="FOLDER", help=out)
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file with these settings; options given here override it"
    )
    _add_fields(parser, list(commands.settings_with_options()))
    for name, what in (
        ("backbone", "deepfm, xdeepfm, dcnv2, autoint or din"), ("thoughts", "folder of `cora thoughts`"),
        ("cot", "llm, template, shuffled or none"),
    ):  # fmt: skip
        parser.add_argument(
            f"--{name}", dest="cora", action="append", default=[], metavar="NAME", type=partial(_named, name),
            help=f"of llmcf: {what}; the same as --cora {name}=",
        )  # fmt: skip
    for name, what in (("cora", "the method's configuration (below)"), ("trainer", "transformers' TrainingArguments")):
        _add_pairs(parser, name, what)


def _add_pairs(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    parser.add_argument(
        f"--{name}",
        type=_pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a field of {what}; repeatable",
    )


def _add_fields(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """An option for each of these fields of RunConfig."""
    types = get_type_hints(RunConfig)
    for name in names:
        one = commands.settings_with_options()[name]
        kind = next(kind for kind in (int, float, str) if kind in (types[name], *getattr(types[name], "__args__", ())))
        default = "" if one.default in ("", None) else f" (default: {one.default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar="N" if kind is not str else "NAME",
            help=one.metadata["help"].replace("%", "%%") + default,
        )


def _fields_of_methods() -> str:
    """What --cora takes: the fields of every method's configuration, and the options of the generators."""
    documented = [AdapterConfig, MethodConfig, *(method.Config for method in METHODS.values())]
    documented += [generator_class(name).Options for name in GENERATORS]
    return "\n\n".join(f"{one.__name__}, for --cora:\n{inspect.getdoc(one)}" for one in documented)


def _named(name: str, text: str) -> tuple[str, Any]:
    return name, text


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, value_of(name, value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
