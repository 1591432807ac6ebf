#!/usr/bin/env bash
# Slurm, 16 GPUs on two nodes: one process a node, which drives all eight of its GPUs.
#
#   VENV=/shared/convoy-env PARTITION=gpu ACCOUNT=perception scripts/slurm_gpu.sh --dry-run     prints the batch script
#   the same without --dry-run                                                                  submits it
#
# Fill in: VENV, an environment with convoy-engine[cuda] on a disk that all nodes see; PARTITION and ACCOUNT, as
# `sinfo` and `sacctmgr show associations` list them. Start it where runs/ may lie: a folder that all nodes see.
# Costs 16 GPUs until the run is done: each stay ends after four hours, saves, and queues again, 50 times at most.
# To end it before: scancel JOB
set -euo pipefail

exec convoy launch slurm \
  --nodes 2 --gpus-per-node 8 --time 4:00:00 --option=exclusive \
  --venv "${VENV:?}" --partition "${PARTITION:?}" --account "${ACCOUNT:?}" --name "${NAME:-convoy}" "$@" -- \
  train --config="${CONFIG:-configs.lm_stdlib}"
