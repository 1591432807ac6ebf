#!/usr/bin/env bash
# One machine: a small run in two processes that find each other as hosts of a cluster do, on CPU devices.
#
#   scripts/laptop.sh                                          a minute or less
#   scripts/laptop.sh --config.train.total="2 epochs"          further words go to the training
#
# Fill in: nothing. For one process, which is faster here: convoy train --config=configs.digits
set -euo pipefail

exec convoy launch local --processes 2 --devices-per-process 1 -- \
  train --config="${CONFIG:-configs.digits}" --workdir="${WORKDIR:-runs/laptop}" "$@"
