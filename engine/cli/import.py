"""`convoy import`: converts weights of another program, and shows which array of a model each one is."""

import argparse
import ast
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base.errors import ConfigError
from engine.cli import common
from engine.cluster.exit_status import ExitStatus

if TYPE_CHECKING:
    from flax import nnx

DESCRIPTION = """
Matches the weights of another program with the arrays of a model, and prints what was matched,
what stays random, and what is unused. SOURCE is a safetensors file, a folder, or a name on
Hugging Face. --out writes the weights with the names of the model: init.checkpoint="hf:FILE".
--map proposes a mapping for names that no table knows; edit its file, and give it with --paths.

  convoy import weights.safetensors --config=configs.digits                      print what is matched
  convoy import weights.safetensors --config=configs.digits --out=a.safetensors     convert
  convoy import weights.safetensors --config=configs.digits --check=pair.npz        compare outputs
  convoy import weights.safetensors --config=configs.digits --map=names_there.py    propose paths
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `convoy import`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="safetensors file, its folder, or OWNER/NAME")
    common.add_config_flag(parser, required=False)
    parser.add_argument("--model", metavar="PATH", help="class or function of the model, instead of --config")
    parser.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE", help="argument of --model; several times"
    )
    parser.add_argument("--part", metavar="PATH", help="part of the model, such as backbone")
    parser.add_argument(
        "--paths", metavar="FILE", help="Python file with paths = {...} (default: init.paths of --config)"
    )
    parser.add_argument(
        "--map", metavar="FILE", help="for names that no table knows: propose paths, and write them to a new file"
    )
    parser.add_argument(
        "--check", metavar="FILE", help="npz with inputs by name of the argument, and output: compare the outputs"
    )
    parser.add_argument("--out", metavar="FILE", help="safetensors file with the names of the model")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """Runs `convoy import`."""
    from engine.hub.importing import import_weights, open_weights, propose_paths
    from engine.hub.matching import part_of
    from engine.hub.path_files import read_paths

    if bool(args.config) == bool(args.model):
        raise ConfigError("convoy import: which model? Give either --config=CONFIG or --model=DOTTED.PATH.")
    if args.map and args.paths:
        raise ConfigError("convoy import: --map proposes what --paths reads. Give one of them.")
    weights = open_weights(args.source)  # before the model is built, which can take long
    module, paths = _module(args, overrides)
    module = part_of(module, args.part, "--part") if args.part else module
    if args.paths or args.part:
        paths = read_paths(Path(args.paths), "--paths") if args.paths else {}
    files = {name: Path(value) if (value := getattr(args, name)) else None for name in ("check", "out")}
    if args.map:
        lines = propose_paths(module, args.part or "", weights, Path(args.map), **files)
    else:
        lines = import_weights(module, weights, paths, **files)
    for line in lines:
        print(line, flush=True)
    return ExitStatus.DONE


def _module(args: argparse.Namespace, overrides: list[str]) -> "tuple[nnx.Module, Mapping[str, str | None]]":
    """Returns the model with initial values, and `init.paths` of its config."""
    from flax import nnx

    from engine.config.schema import Target
    from engine.config.target import build

    if args.config:
        if args.argument:
            raise ConfigError(f"--argument {args.argument[0]}: belongs to --model. Write --config.task.NAME=VALUE.")
        from engine.compile.build import build_task

        config = common.load_config(args.config, overrides)
        return build_task(config.task).build(nnx.Rngs(config.train.seed)), config.init.paths
    if overrides:
        raise ConfigError(f"--config.{overrides[0]}: there is no --config. For --model, write --argument NAME=VALUE.")
    target = Target(target=args.model, arguments=dict(map(_argument, args.argument)))
    return build(target, "--model", rngs=nnx.Rngs(0)), {}


def _argument(text: str) -> tuple[str, Any]:
    """Returns the name and the value: a literal of Python, or else text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--argument {text}: found no value. Write NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
