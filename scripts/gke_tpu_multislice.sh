#!/usr/bin/env bash
# GKE, two slices of 64 TPU v5p chips (4x4x4): 16 hosts each; the data center network connects the slices.
#
#   IMAGE=REGISTRY/convoy:1.0-tpu CLAIM=runs scripts/gke_tpu_multislice.sh          prints the JobSet
#   the same with --apply                                                           starts it
#
# Fill in: IMAGE, built by `docker build --build-arg VARIANT=tpu` and pushed; CLAIM, a PersistentVolumeClaim for runs/
# with access mode ReadWriteMany (Filestore, or a bucket mounted by Cloud Storage FUSE); QUEUE, if you use Kueue.
# The cluster needs JobSet and, for each slice, a node pool of ct5p-hightpu-4t machines with topology 4x4x4.
# Costs 128 TPU v5p chips until the run is done. To end it earlier: kubectl delete jobset convoy-v5p
set -euo pipefail

exec convoy launch k8s \
  --name "${NAME:-convoy-v5p}" --image "${IMAGE:?}" --claim "${CLAIM:?}" ${QUEUE:+--queue "$QUEUE"} \
  --tpu v5p --topology 4x4x4 --slices 2 "$@" -- \
  train --config="${CONFIG:-configs.lm_stdlib}"
