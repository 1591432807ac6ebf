"""The parser of the command line: verbs, their arguments, and errors about unknown words.

`main.py` runs the verbs. `config/override.py` parses the settings of a config, `--config.NAME=VALUE`.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from engine import __version__
from engine.base.errors import ConfigError, did_you_mean
from engine.cli import launch as launch_verbs
from engine.cluster import cluster_detection
from engine.config.schema import Config, field_names

EXAMPLES = """
  convoy train --config=configs.digits                     train, or resume where the run stopped
  convoy train --config=configs.digits --fast-dev-run      train, save and evaluate for two steps
  convoy train --config=runs/digits --workdir=runs/digits  resume a run with its stored config
  convoy evaluate runs/digits                              evaluate its best checkpoint, or --step=N
  convoy predict runs/digits --out=predictions.npz         predict the data of an evaluation, or --data.target=...
  convoy config configs.digits                             print every setting of a config
  convoy explain --config=configs.digits                   print the mesh and how arrays are split
  convoy plan --config=configs.digits --hardware=h100:1x8  choose mesh and memory settings for hardware
  convoy compile --config=configs.digits                   compile the programs of a run before it starts
  convoy checkpoints runs/digits                           list steps, sizes and results
  convoy checkpoints verify runs/digits                    compare every file with its hash
  convoy data write --config=... --out=scenes.arrayrecord  write the training data as ArrayRecord files
  convoy data check --config=configs.digits                read every example, and report bad ones
  convoy doctor                                            print what this machine provides
  convoy launch local --processes 2 -- train --config=...  run a command in several processes
  convoy launch slurm --help                               the same on a cluster; also k8s, tpu-vm
  convoy goodput runs/digits                               print how the time of a run was spent
  convoy supervise -- train --config=configs.digits        train, and restart after failures

--config takes a file, a module or a run directory; --config.NAME=VALUE sets any of its fields
(convoy config --help lists them). Exit codes: 0 done, 1 user error, 42 retry with the same
command, 43 do not retry, 130 interrupted.
"""


class Parser(argparse.ArgumentParser):
    """Reports parse errors like any other user error: one sentence, exit code 1. Flags cannot be abbreviated."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. For help: {self.prog} --help")


# Verb -> sections that can be overridden without `--config.`.
SHORT_OVERRIDES = {
    "evaluate": ("--evaluations.",),
    "predict": ("--data.", "--evaluations."),
    "data": ("--data.", "--evaluations."),
}

type AddParser = Callable[..., Parser]  # method `add_parser` of the subparsers


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Returns the parser of the command line, and the parser of each verb."""
    top = Parser(
        prog="convoy", description="Trains any Flax NNX model on any mesh.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"convoy {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    _add_train(verbs.add_parser)
    _add_evaluate(verbs.add_parser)
    _add_predict(verbs.add_parser)
    _add_config(verbs.add_parser)
    _add_explain(verbs.add_parser)
    _add_plan(verbs.add_parser)
    _add_compile(verbs.add_parser)
    _add_checkpoints(verbs.add_parser)
    _add_goodput(verbs.add_parser)
    _add_data(verbs.add_parser)
    _add_launch(verbs.add_parser)
    _add_supervise(verbs.add_parser)
    _add_doctor(verbs.add_parser)
    return top, dict(verbs.choices)


def _add_train(add: AddParser) -> None:
    train = add("train", help="train a config; the same command again resumes where the run stopped")
    _add_config_flag(train)
    train.add_argument("--workdir", help="run directory, a folder or s3://BUCKET/PATH (default: runs/<name>)")
    train.add_argument("--fresh", action="store_true", help="start a new run; an existing run is moved aside")
    train.add_argument("--fast-dev-run", action="store_true", help="train, save and evaluate for two small steps")
    train.add_argument(
        "--accept-schedule-change",
        action="store_true",
        help="resume although train.total changes the learning rates, context.total_steps, or weights of the data",
    )
    train.add_argument(
        "--accept-data-change", action="store_true", help="resume although the training data has changed"
    )
    _add_process_flags(train)


def _add_evaluate(add: AddParser) -> None:
    evaluate = add("evaluate", help="run the evaluations of a run on its checkpoints")
    evaluate.add_argument("run", help="run directory")
    evaluate.add_argument(
        "--step", help="a step, latest, best, a list 100,200,latest, or all (default: best, else latest)"
    )
    evaluate.add_argument(
        "--follow", action="store_true", help="evaluate each checkpoint of a running job once, until the run is done"
    )
    evaluate.add_argument(
        "--timeout", metavar="TIME", help="for --follow: end after this time without a change of the run: '2 hours'"
    )
    evaluate.add_argument_group(
        "settings", "--evaluations.NAME.data.target=... and other fields of evaluations, or --config.NAME=VALUE"
    )
    _add_process_flags(evaluate)


def _add_predict(add: AddParser) -> None:
    predict = add("predict", help="run the predictions of a run over a dataset, and write them to a file")
    predict.add_argument("run", help="run directory")
    predict.add_argument("--out", required=True, metavar="FILE", help="file to write: NAME.npz or NAME.parquet")
    predict.add_argument("--overwrite", action="store_true", help="replace an existing file")
    predict.add_argument("--figures", type=int, default=0, metavar="N", help="also draw the first N, with Task.figure")
    predict.add_argument("--step", help="a step, latest or best (default: best if the run selects one, else latest)")
    predict.add_argument("--evaluation", metavar="NAME", help="read the data of this evaluation of the run")
    predict.add_argument("--batch-size", type=int, help="examples per batch (default: that of the evaluation)")
    predict.add_argument_group(
        "data", "--data.target=NAME and --data.ARGUMENT=VALUE give a dataset; --config.NAME=VALUE sets other fields"
    )
    _add_process_flags(predict)


def _add_config(add: AddParser) -> None:
    config = add("config", help="print a resolved config as lines `name: value`", add_help=False)
    config.add_argument("config", nargs="?", help="file, module or run directory")
    config.add_argument("-h", "--help", action="store_true", help="list every field with its default")


def _add_explain(add: AddParser) -> None:
    explain = add("explain", help="print the mesh, the memory of a device by part, and the collectives")
    _add_config_flag(explain)
    explain.add_argument("--devices", type=int, help="number of devices (default: the product of the mesh axes)")
    explain.add_argument(
        "--hardware", metavar="TARGET", help="compile for v5p:4x4x8, v5e:16x16*2, h100:32x8 or local (extra: aot)"
    )
    explain.add_argument(
        "--no-collectives", action="store_true", help="do not compile, which takes long for large models"
    )


PLAN = """
Chooses the mesh, the remat policy, the microbatches and further memory settings of a config for
hardware that may be absent. It traces the model once on one device, scores all candidates by
formula (memory first, then the time of products, memory and each network), and prints the best
ones, the winner as settings for convoy train, and why the others lost. Exit code 1 where nothing
fits, with the nearest changes that would.

  convoy plan --config=configs.digits --hardware=local        the devices of this machine
  convoy plan --config=CONFIG --hardware=h100:32x8            32 hosts of 8 H100
  convoy plan --config=CONFIG --hardware=v5p:4x4x8            a slice of TPU v5p
  convoy plan --config=CONFIG --hardware=v5e:16x16*2          two slices of TPU v5e
  convoy plan --config=CONFIG --hardware=h100:1x8 --compile=3 compile the best three ahead of time
  convoy plan --runs runs/digits runs/vit                     errors of the predictions of these runs
"""


def _add_plan(add: AddParser) -> None:
    plan = add(
        "plan",
        help="choose mesh, remat, microbatches and memory settings for hardware that may be absent",
        description=PLAN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config_flag(plan, required=False)
    plan.add_argument("--runs", nargs="+", metavar="DIR", help="print what was predicted and measured in these runs")
    plan.add_argument(
        "--hardware", default="local", metavar="TARGET",
        help="v5p:4x4x8, v5e:16x16*2 (slices), h100:32x8 (hosts x GPUs), or local, the default",
    )  # fmt: skip
    plan.add_argument(
        "--calibrate", action="store_true",
        help="measure products, memory and collectives of the devices at hand first, and store the rates",
    )  # fmt: skip
    plan.add_argument(
        "--compile", type=int, default=0, metavar="N",
        help="compile the best N candidates ahead of time; their memory and traffic replace the formula's (extra: aot)",
    )  # fmt: skip


COMPILE_EXAMPLES = """
Without --out, the programs go to the compilation cache of this user, and a start on this kind of
machine finds them there. With --out they are executables in a folder, also for hardware that is
absent (--hardware needs the extra aot); the job loads them if it finds the same versions, devices
and programs, and otherwise warns and compiles as usual:

  convoy compile --config=configs.digits
  convoy compile --config=configs.digits --hardware=v5e:4x4 --out=programs
  convoy train --config=configs.digits --config.cache.programs=programs
"""


def _add_compile(add: AddParser) -> None:
    compile_ = add(
        "compile",
        help="compile the programs of a run (first state, step, evaluations) before it starts",
        epilog=COMPILE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config_flag(compile_)
    compile_.add_argument(
        "--hardware", metavar="TARGET", help="v5p:4x4x8, v5e:16x16*2, h100:32x8, ... (default: the devices here)"
    )
    compile_.add_argument("--out", metavar="DIR", help="folder for executables (default: the compilation cache)")
    _add_process_flags(compile_)


def _add_checkpoints(add: AddParser) -> None:
    checkpoints = add("checkpoints", help="list, verify or export the checkpoints of a run")
    checkpoints.add_argument(
        "action", nargs="?", choices=["verify"], metavar="verify", help="read every file and compare it with its hash"
    )
    checkpoints.add_argument("run", help="run directory")
    checkpoints.add_argument(
        "--export", metavar="FILE", help="write the weights as safetensors; the averaged weights if there are any"
    )
    checkpoints.add_argument("--step", help="for --export: a step, latest or best")


def _add_goodput(add: AddParser) -> None:
    goodput = add("goodput", help="print how the time of a run was spent, per attempt")
    goodput.add_argument("run", help="run directory")


def _add_data(add: AddParser) -> None:
    data = add("data", help="write a dataset as ArrayRecord files, or check every example of it")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True, prog="convoy data")
    write = actions.add_parser(
        "write", help="write every example to ArrayRecord files; again, to continue after a kill"
    )
    write.add_argument(
        "--out", required=True, help="file to write; NAME-00003-of-00016.arrayrecord for NAME.arrayrecord in 16 shards"
    )
    write.add_argument("--shards", type=int, help="number of files (default: one for each 64 MiB, at most 1024)")
    write.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    check = actions.add_parser(
        "check", help="read every example, and report bad ones, shapes, sizes, classes and throughput"
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    for action in (write, check):
        _add_config_flag(action, required=False)
        action.add_argument("--evaluation", metavar="NAME", help="the data of this evaluation, instead of training")
        action.add_argument("--processes", type=int, help="number of processes (default: one per core)")
        action.add_argument_group(
            "data", "--data.target=NAME and --data.ARGUMENT=VALUE give a dataset without a config"
        )
        action.set_defaults(parser=action)


def _add_launch(add: AddParser) -> None:
    launch = add(
        "launch",
        help="run a command in several processes, on this machine or on a cluster",
        usage="convoy launch WHERE [options] -- VERB ...",
    )
    launchers = launch.add_subparsers(dest="where", metavar="WHERE", required=True, prog="convoy launch")
    local = launchers.add_parser(
        "local", help="on this machine", usage="convoy launch local --processes N [options] -- VERB ..."
    )
    local.add_argument("--processes", type=int, required=True, help="number of processes")
    _add_devices_flag(local)
    local.add_argument("--restarts", type=int, default=0, help="maximum number of restarts of a failed training")
    for add_launcher in launch_verbs.ADD_PARSER.values():
        add_launcher(launchers.add_parser)
    for launcher in launchers.choices.values():
        launcher.set_defaults(parser=launcher)


def _add_supervise(add: AddParser) -> None:
    supervise = add(
        "supervise", help="train, and restart after failures until the run is done",
        usage="convoy supervise [options] -- train ...",
    )  # fmt: skip
    supervise.add_argument("--processes", type=int, help="number of processes on this machine (default: one)")
    _add_devices_flag(supervise)
    supervise.add_argument("--restarts", type=int, help="maximum number of restarts (default: no limit)")


def _add_doctor(add: AddParser) -> None:
    doctor = add("doctor", help="print processes, versions and devices found here, and test a collective")
    doctor.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for other processes (default: 60)")
    _add_process_flags(doctor)


def _add_config_flag(verb: Parser, required: bool = True) -> None:
    verb.add_argument(
        "--config", required=required, help="file, module or run directory; --config.NAME=VALUE sets a field"
    )


def _add_process_flags(verb: Parser) -> None:
    group = verb.add_argument_group(
        "several processes", "start the same command in each process; convoy launch sets the variables"
    )
    for name, text in (
        ("coordinator", "HOST:PORT on which process 0 listens"),
        ("count", "number of processes"),
        ("index", "index of this process, from 0"),
    ):
        group.add_argument(
            cluster_detection.FLAGS[name], dest=name, help=f"{text} (or {cluster_detection.VARIABLES[name]})"
        )


def _add_devices_flag(verb: Parser) -> None:
    text = "CPU devices of each process (default: JAX decides)"
    verb.add_argument("--devices-per-process", type=int, help=text)


def split_overrides(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates overrides, `--config.a.b=value` or `--config.a.b value`; returns other arguments and `a.b=value`.

    For some verbs, some sections need no `--config.`: `convoy predict runs/digits --data.limit=10`.
    """
    rest, overrides, words = [], [], iter(args)
    short = SHORT_OVERRIDES.get(args[0], ()) if args else ()
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
        after: `--` and the command after it, which is stored as `command`; or empty.

    Raises:
        ConfigError: an unknown verb or argument.
    """
    top, verbs = make_parser()
    if words and not words[0].startswith("-") and words[0] not in verbs:
        raise ConfigError(f"{words[0]}: no such verb.{did_you_mean(words[0], verbs)} Verbs: {', '.join(verbs)}.")
    args, unknown = _parse_known(top, words)
    args.command = list(after[1:])
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


def _parse_known(top: Parser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the parsed arguments and the unknown words. Suggests --config for a config without the flag."""
    try:
        return top.parse_known_args(words)
    except ConfigError as error:
        positional = [word for word in words[1:] if not word.startswith("-")]
        if positional and str(error).partition(". ")[0].endswith("required: --config"):
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
    names = re.findall(r"^  (--[\w-]+)", parser.format_help(), re.MULTILINE)
    verb, near = parser.prog.split()[1], did_you_mean(word.split("=")[0], names)
    if verb in ("launch", "supervise") and not word.startswith("-"):
        near = f" Write -- before the command: ... -- {word} ..."
    elif "--config" in names and (not word.startswith("-") or word[2:].split(".")[0] in field_names(Config)):
        near = f" Did you mean --config{'.' if word.startswith('-') else '='}{word.removeprefix('--')}?"
    allowed = [*names, "and --config.NAME=VALUE"] if "--config" in names or verb in SHORT_OVERRIDES else names
    return ConfigError(f"{word}: unknown argument of {parser.prog}.{near} Arguments here: {', '.join(allowed)}.")
