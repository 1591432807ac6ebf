"""Prints the FLOPs of a training step of a config, over all devices: python -m engine.sweeps.flops CONFIG OVERRIDES."""

import json
import sys

from engine.base.errors import ConvoyError
from engine.config.loading import load


def main(reference: str, *overrides: str) -> int:
    """Prints the number as JSON, or null if JAX does not state it; returns the exit code."""
    try:
        config = load(reference, overrides)
        from engine.api.prepared import prepare, set_up_absent_devices  # JAX, which a mistake in a config does not need

        config, devices = set_up_absent_devices(config, None, None)
        built, _ = prepare(config, devices=devices).with_sizes().build_program()
    except ConvoyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(built.flops_per_step))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
