"""The flags of `convoy export` that concern bundles."""

import argparse

from engine.base.errors import ConfigError

FORMATS = ("stablehlo", "onnx")
FLAGS = {
    "batch": "any",
    "shape": [],
    "platforms": "cpu,cuda,tpu",
    "weights": "file",
    "evaluation": None,
    "sign": None,
    "onnx_python": None,
}
QUANTIZE = {"quantize": None, "calibration": "percentile", "keep": "", "max_drop": "", "sensitivity": False}
"""Flag -> its default. Other formats do not have them."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group(
        "bundle (--format=stablehlo, onnx or stablehlo,onnx)",
        "--evaluations.NAME.data.ARGUMENT=VALUE changes the data of the samples",
    )
    group.add_argument("--batch", default=FLAGS["batch"], metavar="N", help="rows of each call (default: any)")
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME:SIZES",
        help="dimensions of an input, numbers or names of any size: --shape=tokens:batch,length",
    )
    group.add_argument("--platforms", default=FLAGS["platforms"], metavar="NAMES", help="default: cpu,cuda,tpu")
    group.add_argument("--weights", choices=("file", "inside"), default="file", help="of StableHLO (default: file)")
    group.add_argument("--sign", metavar="KEY", help="a secret key of minisign: also writes bundle.json.minisig")
    group.add_argument("--evaluation", metavar="NAME", help="whose data gives the samples (default: the first)")
    group.add_argument("--onnx-python", metavar="PATH", help="a Python with jax2onnx (default: $CONVOY_ONNX_PYTHON)")
    group = parser.add_argument_group("quantization of a bundle")
    group.add_argument("--quantize", metavar="SCHEME", help="int8, int8-weights, fp16 or bf16")
    group.add_argument(
        "--calibration", default="percentile", metavar="NAME", help="ranges of int8: percentile (default), mse or max"
    )
    group.add_argument("--keep", default="", metavar="LAYERS", help="layers that stay in floats")
    group.add_argument(
        "--max-drop",
        default="",
        metavar="METRIC:DROP",
        help="keep the most costly layers in floats: heldout/accuracy:0.002",
    )
    group.add_argument("--sensitivity", action="store_true", help="print what each layer costs")


def refuse(args: argparse.Namespace) -> None:
    """Raises ConfigError for a flag of a bundle with another format."""
    for name, default in {**FLAGS, **QUANTIZE}.items():
        if getattr(args, name) != default:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: concerns a bundle. Add --format=stablehlo or --format=onnx, or leave it out.")


def write(args: argparse.Namespace, formats: list[str], overrides: list[str]) -> None:
    """Writes the bundle that the flags describe."""
    from engine.cli import common

    batch, shapes = args.batch, [text.partition(":") for text in args.shape]
    if batch != "any" and not batch.isdecimal():
        raise ConfigError(f"--batch={batch}: allowed is a number from 1, or any.")
    if wrong := [f"{name}{colon}{sizes}" for name, colon, sizes in shapes if not (name and sizes)]:
        raise ConfigError(f"--shape={wrong[0]}: found no sizes. Write NAME:SIZE,SIZE, such as tokens:batch,128.")
    for name, default in QUANTIZE.items():
        if args.quantize is None and getattr(args, name) != default:
            raise ConfigError(f"--{name.replace('_', '-')}: concerns --quantize=SCHEME. Add it, or leave it out.")
    common.warn_of_missing_end(args.run)
    with common.fast_import():
        from engine.bundles.export import export_bundle
        from engine.bundles.options import Options
        from engine.quantization.runs import Settings
    options = Options(
        formats=formats,
        rows=None if batch == "any" else int(batch),
        shapes={name: sizes for name, _, sizes in shapes},
        platforms=args.platforms.split(","),
        holds_weights=args.weights == "inside",
        evaluation=args.evaluation,
        overrides=overrides,
        sign=args.sign,
        onnx_python=args.onnx_python,
        quantize=None
        if args.quantize is None
        else Settings(
            scheme=args.quantize,
            calibration=args.calibration,
            keep=[name for name in args.keep.split(",") if name],
            evaluation=args.evaluation or "",
            max_drop=args.max_drop,
            sensitivity=args.sensitivity,
        ),
    )
    written = export_bundle(args.run, args.out, step=args.step, options=options, on_message=common.say)
    print(f"wrote bundle {args.out}: {', '.join(written.entries)}")
