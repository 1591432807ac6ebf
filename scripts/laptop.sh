#!/usr/bin/env bash
# One machine: a small run on CPU devices in two processes, which find each other like hosts of a cluster.
#
#   scripts/laptop.sh                                          takes a minute or less
#   scripts/laptop.sh --config.train.total="2 epochs"          passes further arguments to convoy train
#
# Fill in: nothing. A single process is faster here: convoy train --config=configs.digits
set -euo pipefail

exec convoy launch local --processes 2 --devices-per-process 1 -- \
  train --config="${CONFIG:-configs.digits}" --workdir="${WORKDIR:-runs/laptop}" "$@"
