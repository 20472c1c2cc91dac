"""The command `cora`: one function a command."""

import argparse
import inspect
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from cora.codes import Recipe
from cora.codes.vectors import VECTORS
from cora.data import NAMED_DATA
from cora.data.problems import clipped
from cora.fetching import cache_folder
from cora.generators import GENERATORS, generator_class
from cora.methods import METHODS, load_method
from cora.methods.config import AdapterConfig, MethodConfig
from cora.prompts.template import one_line
from cora.runs.distributed import is_main, one_speaks, process_index
from cora.runs.folder import RunFolder
from cora.runs.metrics import as_table, joined, summary
from cora.runs.settings import RunConfig, load_settings, value_of

# The settings that decide what `cora fit` makes.
_OF_VECTORS = (
    "data", "positive_rating", "split", "valid_from", "test_from", "leave_last", "cold_share", "collaborative", "dim",
    "seed",
)  # fmt: skip

# Those that decide what `cora thoughts` writes.
_OF_THOUGHTS = (
    "data", "model", "positive_rating", "split", "valid_from", "test_from", "leave_last", "cold_share", "dtype", "seed",
)  # fmt: skip

# The settings that decide what `cora index` makes.
_OF_CODES = (
    "data", "model", "split", "valid_from", "test_from", "leave_last", "cold_share", "dtype", "seed",
)  # fmt: skip

_LONGEST_ERROR = 300  # characters


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after one line on stderr for what the user can put right."""
    options = _parser().parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"cora: note: {message}\n"
    try:
        with one_speaks():
            options.command(options)
    except (ValueError, TypeError, OSError) as error:
        if sys.flags.dev_mode:  # python -X dev
            raise
        who = "" if is_main() else f" (process {process_index()})"
        print(clipped(f"cora: error{who}: {' '.join(str(error).split())}", _LONGEST_ERROR), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncora: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace) -> None:
    config = RunConfig.from_dict(_given(options))
    if load_method(config.method).task == "next item":
        from cora.runs.next_items_train import as_text, train_next_items

        text = as_text(train_next_items(config, options.out))
    else:
        from cora.runs.train import train

        text = as_table(train(config, options.out))
    print(f"\n{text}\n\npicture  {RunFolder(options.out).picture}\nmodel    {RunFolder(options.out).model}")


def _fit(options: argparse.Namespace) -> None:
    from cora.runs.vectors import fit_vectors

    given = {name: getattr(options, name) for name in _OF_VECTORS if getattr(options, name) is not None}
    # The settings of a run name a language model; none is read here.
    result = fit_vectors(RunConfig.from_dict({**given, "model": "none"}), options.out)
    print(f"\n{as_table(result)}\n\nvectors  {options.out}")


def _thoughts(options: argparse.Namespace) -> None:
    from cora.runs.thoughts import write_thoughts

    given = {name: getattr(options, name) for name in _OF_THOUGHTS if getattr(options, name) is not None}
    thoughts = write_thoughts(
        RunConfig.from_dict(given), options.rows, options.out, options.cot, options.new_tokens, options.candidates,
        options.run, options.max_minutes,
    )  # fmt: skip
    row = thoughts.rows.iloc[len(thoughts.rows) // 2]
    print(f"\n{len(thoughts.rows)} rows, {len(thoughts.item_ids)} items; for example\n  {one_line(row[options.cot])}")
    print(f"thoughts  {options.out}")


def _index(options: argparse.Namespace) -> None:
    from cora.runs.index import index

    given = {name: getattr(options, name) for name in _OF_CODES if getattr(options, name) is not None}
    index({"model": "", **given}, options.vectors, dict(options.recipe), options.out)
    print(f"\ncodes  {options.out}")


def _compare(options: argparse.Namespace) -> None:
    from cora.runs.compare import as_table, compare

    print(f"\n{as_table(compare(_given(options), options.methods, options.seeds, options.out))}")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options and their file give."""
    given = {name: value for name, value in vars(options).items() if name in _settings() and value is not None}
    settings = load_settings(options.config) if options.config else {}
    for name in ("cora", "trainer"):
        of_file = settings.get(name) or {}
        if not isinstance(of_file, dict):
            raise TypeError(f"{name}: expected names with values in {options.config}, got {of_file!r:.80}")
        given[name] = {**of_file, **dict(getattr(options, name))}
    return {**settings, **given}


def _evaluate(options: argparse.Namespace) -> None:
    from cora.runs.score import evaluate

    result = evaluate(options.run, options.data, options.part, options.rows, options.scores)
    print(f"\n{as_table(result)}")
    if options.json:
        RunFolder(options.run).write(Path(options.json), json.dumps(result, indent=2) + "\n")


def _score(options: argparse.Namespace) -> None:
    from cora.runs.recommend import recommend

    found = recommend(options.run, options.user, options.top, options.candidates)
    history = ", ".join(map(one_line, found.history[-3:]))
    print(f"user {options.user} liked {history or 'nothing so far'}" + (" most recently" if history else ""))
    ranks = found.table.get("collaborative_rank", pd.Series(0, index=found.table.index))
    for place, (title, probability, rank) in enumerate(
        zip(found.table["title"], found.table["probability"], ranks, strict=True), 1
    ):
        print(f"{place:>3}  {probability:.3f}  {one_line(title)}" + (f"  (candidate {rank})" if rank else ""))


def _recommend(options: argparse.Namespace) -> None:
    from cora.runs.recommend_all import recommend_all

    users = recommend_all(options.run, options.users, options.out, options.top, options.candidates)
    print(f"recommendations for {users} users in {options.out}")


def _explain(options: argparse.Namespace) -> None:
    from cora.runs.explain import as_text, explain, save

    found = explain(options.run, options.user, options.item, options.neighbours)
    print(f"{as_text(found, options.user)}\npicture  {save(found, options.run, options.user, options.item)}")


def _export(options: argparse.Namespace) -> None:
    from cora.export.runs import export, export_scorer

    if not options.user:
        print(f"model  {export_scorer(options.run, options.out)}")
        return
    for folder in export(options.run, options.user, options.item, options.out):
        print(f"adapter  {folder}")


def _serve(options: argparse.Namespace) -> None:
    if missing := [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f"serve: {', '.join(missing)} missing, install the extra `serve` of cora-kernels")
    from cora.serving.app import serve
    from cora.serving.batching import Limits

    limits = Limits(options.queue, options.batch_prompts, options.deadline)
    serve(options.run, options.host, options.port, limits)


def _info(options: argparse.Namespace) -> None:
    if options.run:
        runs = [RunFolder.existing(run) for run in options.run]
        for run in runs:
            print(run.settings.read_text(encoding="utf-8"))
        tasks = {load_method(run.config().method).task for run in runs}
        if tasks == {"rating"}:
            print(as_table(summary(joined([pd.read_parquet(run.predictions) for run in runs]))))
        elif tasks == {"next item"}:
            from cora.runs.next_items_train import as_text

            print("\n\n".join(as_text(json.loads(run.metrics.read_text(encoding="utf-8"))) for run in runs))
        else:
            raise ValueError("run: expected runs that all score users and items, or all say what comes next, got both")
        return
    from cora.llm.loading import NAMED_MODELS
    from cora_kernels.info import report

    print(report())
    print(f"named data    {', '.join(NAMED_DATA)}")
    print(f"named models  {', '.join(NAMED_MODELS)}")
    print(f"cache         {cache_folder()}")


def _settings() -> dict[str, Any]:
    """The fields of RunConfig that have an option of their own."""
    return {one.name: one for one in fields(RunConfig) if "help" in one.metadata}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cora", description="A language model that recommends to each user by weights of their own."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a method, compare it with its parts, save it",
        description="Trains a method on interactions and leaves a folder with settings, metrics.json, predictions, a "
        "picture and the model. The same command again goes on where it was stopped.",
        epilog=_fields_of_methods(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(train, "folder of the run")
    train.set_defaults(command=_train)

    fit = commands.add_parser(
        "fit",
        help="train collaborative vectors alone and write them to a file",
        description="Trains a collaborative model, writes its vectors of users and items, and what makes a user's "
        "vector from their past, to a file that `cora train --embeddings` takes, and prints how well they rank the "
        "validation rows: rows of the users' table, and vectors of the users' past.",
    )
    fit.add_argument("--out", required=True, metavar="FILE", help="safetensors file that is written")
    _add_fields(fit, _OF_VECTORS)
    fit.set_defaults(command=_fit)

    thoughts = commands.add_parser(
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
    _add_fields(thoughts, _OF_THOUGHTS)
    thoughts.set_defaults(command=_thoughts)

    index = commands.add_parser(
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
    _add_fields(index, _OF_CODES)
    index.set_defaults(command=_index)

    compare = commands.add_parser(
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
        help="methods, each with fields of its own configuration: cora cora:offset=true tallrec",
    )  # fmt: skip
    compare.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="seeds (default: 0)")
    _add_settings(compare, "folder for the runs and comparison.json")
    compare.set_defaults(command=_compare)

    evaluate = commands.add_parser("evaluate", help="score labelled rows by a trained run and print the metrics")
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
    evaluate.set_defaults(command=_evaluate)

    score = commands.add_parser("score", help="recommend items to one user")
    score.add_argument("--user", required=True, metavar="ID", help="user id as in the data")
    score.set_defaults(command=_score)
    recommend = commands.add_parser(
        "recommend",
        help="recommend items to many users, into a table",
        description="Ranks items for every user of a file and writes a parquet file. The same command again goes on "
        "where it was stopped.",
    )
    recommend.add_argument("--users", required=True, metavar="FILE", help="text file, one user id a line")
    recommend.add_argument("--out", required=True, metavar="FILE", help="parquet file to write")
    recommend.set_defaults(command=_recommend)
    for one in (score, recommend):
        one.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
        one.add_argument("--top", type=int, default=10, metavar="N", help="items for each user (default: 10)")
        one.add_argument(
            "--candidates", type=int, default=100, metavar="N",
            help="unseen items that the method ranks: the best by the collaborative vectors, or by lcrec's beam, which "
            "is so wide (default: 100)",
        )  # fmt: skip

    explain = commands.add_parser("explain", help="what the delta of a user and an item changes, layer by layer")
    explain.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
    explain.add_argument("--user", required=True, metavar="ID", help="user id as in the data")
    explain.add_argument("--item", required=True, metavar="ID", help="item id as in the data")
    explain.add_argument(
        "--neighbours", type=int, default=10, metavar="N", help="users printed whose A is most alike (default: 10)"
    )
    explain.set_defaults(command=_explain)

    export = commands.add_parser(
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
    export.set_defaults(command=_export)

    serve = commands.add_parser(
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
    serve.set_defaults(command=_serve)

    info = commands.add_parser(
        "info", help="versions, usable kernels, named data and models; or a run's settings and metrics"
    )
    info.add_argument(
        "--run",
        nargs="+",
        metavar="FOLDER",
        help="folder of a finished run; several that scored the same rows make one table",
    )
    info.set_defaults(command=_info)
    return parser


def _add_settings(parser: argparse.ArgumentParser, out: str) -> None:
    """The options that are fields of RunConfig; out: what --out is."""
    parser.add_argument("--out", required=True, metavar="FOLDER", help=out)
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file with these settings; options given here override it"
    )
    _add_fields(parser, list(_settings()))
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
        one = _settings()[name]
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


if __name__ == "__main__":
    sys.exit(main())
