"""Parses the command line: verbs, their arguments, overrides, and errors about unknown words.

`verbs.py` lists the verbs. `config/override.py` parses the settings of a config, `--config.NAME=VALUE`.
"""

import argparse
import functools
import re
from collections.abc import Sequence

from engine import __version__
from engine.base.errors import ConfigError, did_you_mean, near_names
from engine.cli.common import Parser
from engine.cli.verbs import VERBS

EXAMPLES = """
  convoy train --config=configs.digits                                train, or resume where the run stopped
  convoy init mine --kind=images                                      write a small project, to be changed
  convoy train --config=configs.digits --fast-dev-run                 train, save and evaluate for two steps
  convoy train --config=runs/digits --workdir=runs/digits             resume a run with its stored config
  convoy evaluate runs/digits                                         evaluate its best step, or --step=N
  convoy predict runs/digits --out=digits.npz                         predict with Task.predict
  convoy plot runs/digits                                             show its curves, or --out=curves.png
  convoy report runs/digits                                           write its curves, results and settings as HTML
  convoy config configs.digits                                        print every setting of a config
  convoy explain --config=configs.digits                              print the mesh and how arrays are split
  convoy plan --config=configs.digits --hardware=h100:1x8             choose mesh and memory for hardware
  convoy tune lr --config=configs.digits                              suggest a learning rate
  convoy tune batch --config=configs.digits                           suggest a batch size
  convoy compile --config=configs.digits                              compile the programs before a run starts
  convoy checkpoints runs/digits                                      list steps, sizes and results
  convoy checkpoints verify runs/digits                               compare every file with its hash
  convoy export runs/digits --out=digits.safetensors                  write its weights
  convoy export runs/digits --format=stablehlo --out=digits           or its program
  convoy import weights.safetensors --config=configs.digits           match weights of another program
  convoy bench digits                                                 measure the latency of a bundle
  convoy runs --sort=-heldout/accuracy                                list the runs in runs/, the best first
  convoy runs lineage runs/digits                                     print where it came from and went to
  convoy runs push runs/digits --to=csv                               send it to a tracker such as mlflow
  convoy sweep --config=configs.digits --space=space.py               search settings with many runs
  convoy sweep status sweeps/digits                                   its progress and its best trial
  convoy data write --config=configs.digits --out=a.arrayrecord       write the training data as ArrayRecord
  convoy data check --config=configs.digits                           read every example, and report bad ones
  convoy doctor                                                       print what this machine provides
  convoy launch local --processes 2 -- train --config=configs.digits  in several processes
  convoy launch slurm --help                                          the same on a cluster; also ray, k8s, tpu-vm
  convoy goodput runs/digits                                          print how the time of a run was spent
  convoy supervise -- train --config=configs.digits                   train, and restart after failures

--config takes a file, a module or a run directory; --config.NAME=VALUE sets any of its fields
(convoy config --help lists them). Exit codes: 0 done, 1 user error, 42 retry with the same
command, 43 do not retry, 130 interrupted.
"""

_NO_CONFIG = ("required: --config", "--config --cooldown is required")  # how errors of argparse end


def make_parser(words: Sequence[str] | None = None) -> tuple[Parser, dict[str, Parser]]:
    """Returns the parser of the command line, and the parser of each verb.

    Args:
        words: the command line: only the verb that comes first has its arguments, so that no other is imported. None:
            all verbs have them.
    """
    top = Parser(
        prog="convoy", description="Trains any Flax NNX model on any mesh.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"convoy {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="COMMAND")
    for name, verb in VERBS.items():
        parser = verbs.add_parser(name, help=verb.help, add_help=verb.add_help)
        if words is None or name in words[:1]:
            verb.module.add_arguments(parser)
    return top, dict(verbs.choices)


def split_overrides(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates overrides, `--config.a.b=value` or `--config.a.b value`; returns other arguments and `a.b=value`.

    For some verbs, some sections need no `--config.`: `convoy predict runs/digits --data.limit=10`.
    """
    rest, overrides, words = [], [], iter(args)
    short = VERBS[args[0]].short_overrides if args and args[0] in VERBS else ()
    for word in words:
        if not word.startswith(("--config.", *short)):
            rest.append(word)
            continue
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--config.").removeprefix("--")
        if not equals:
            value = next(words, None)
            if value is None:
                raise ConfigError(f"{flag}: no value. Write {flag}=VALUE.")
        overrides.append(f"{name}={value}")
    return rest, overrides


def parse(words: Sequence[str], after: Sequence[str] = ()) -> argparse.Namespace:
    """Returns the parsed arguments; `verb` is None if no verb is given.

    Args:
        words: the arguments before `--`, without overrides.
        after: `--` and the command after it, or empty. The command is stored as `command`, and `parse_command()` parses
            it into its arguments and its overrides.

    Raises:
        ConfigError: an unknown verb or argument.
    """
    top, verbs = make_parser(words)
    if words and not words[0].startswith("-") and words[0] not in verbs:
        near = did_you_mean(words[0], verbs)
        raise ConfigError(f"{words[0]}: unknown command.{near} Commands: {', '.join(verbs)}.")
    args, unknown = _parse_known(top, _with_action(words))
    args.command = list(after[1:])
    args.parse_command = functools.partial(_parse_command, args.command)
    if (restarts := getattr(args, "restarts", None)) is not None and restarts < 0:
        raise ConfigError(f"--restarts = {restarts}: allowed is a whole number from 0.")
    if args.verb not in (None, "launch", "supervise"):
        unknown += after
    if args.verb is not None:
        parser = getattr(args, "parser", verbs[args.verb])
        if unknown:
            raise _unknown_argument(unknown[0], parser)
        _check_not_empty(args, parser)
    return args


def _with_action(words: Sequence[str]) -> Sequence[str]:
    """Inserts the action that is meant if the word after the verb names none: `convoy runs` is `convoy runs list`."""
    actions = VERBS[words[0]].actions if words and words[0] in VERBS else ()
    if not actions or words[1:2] in (["-h"], ["--help"], *([action] for action in actions)):
        return words
    return [words[0], actions[0], *words[1:]]


def _parse_command(command: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    words, overrides = split_overrides(command)
    return parse(words), overrides


def _parse_known(top: Parser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the parsed arguments and the unknown words. Suggests --config for a config without the flag."""
    try:
        return top.parse_known_args(words)
    except ConfigError as error:
        actions = VERBS[words[0]].actions
        positional = [word for word in words[1:] if not word.startswith("-") and word not in actions]
        if positional and str(error).partition(". ")[0].endswith(_NO_CONFIG):
            raise ConfigError(f"{error}. Did you mean --config={positional[-1]}?") from None
        raise


def _check_not_empty(args: argparse.Namespace, parser: Parser) -> None:
    """Raises ConfigError for an empty value, as a shell variable that is not set leaves it: --workdir=$DIR."""
    for name, value in vars(args).items():
        if value == "" and parser.get_default(name) != "":
            flag = f"--{name.replace('_', '-')}"
            word = flag if flag in parser.format_help() else name.upper()
            raise ConfigError(f"{word}: found an empty value. Write a value, or leave {word} out.")


def _unknown_argument(word: str, parser: Parser) -> ConfigError:
    from engine.config.schema import Config, field_names  # help, and most mistakes, do not need it

    names = re.findall(r"^  (--[\w-]+)", parser.format_help(), re.MULTILINE)
    verb, near = parser.prog.split()[1], did_you_mean(word.split("=")[0], names)
    if verb in ("launch", "supervise") and not word.startswith("-"):
        near = f" Write -- before the command: ... -- {word} ..."
    elif "--config" in names and (not word.startswith("-") or word[2:].split(".")[0] in field_names(Config)):
        near = f" Did you mean --config{'.' if word.startswith('-') else '='}{word.removeprefix('--')}?"
    elif "--config" in names:  # --epochs is no typing error of --process-id
        near = _field_of(word) or near or _field_of(word, cutoff=0.8)
    allowed = [*names, "and --config.NAME=VALUE"] if "--config" in names or VERBS[verb].short_overrides else names
    return ConfigError(f"{word}: unknown argument of {parser.prog}.{near} Arguments here: {', '.join(allowed)}.")


def _field_of(word: str, cutoff: float = 1.0) -> str:
    """Suggests the field of a config that `--lr=0.1` may mean; "" if no field has such a name."""
    from engine.base.duration import DATA_UNITS
    from engine.config.schema import Config
    from engine.config.text import flatten

    name, _, value = word.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if name in DATA_UNITS:
        return f' Did you mean --config.train.total="{value or "N"} {name}"?'
    paths = {path.rpartition(".")[2]: path for path, _ in reversed(flatten(Config()))}
    near = [leaf for leaf in paths if leaf == name or leaf.endswith(f"_{name}")] or near_names(name, paths, cutoff)
    return f" Did you mean --config.{paths[near[0]]}={value or 'VALUE'}?" if near else ""
