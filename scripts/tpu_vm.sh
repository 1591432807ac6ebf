#!/usr/bin/env bash
# A Cloud TPU slice of 16 v5e chips without Kubernetes: four VMs, requested as a queued resource.
#
#   ZONE=us-west4-a scripts/tpu_vm.sh create              prints the gcloud command
#   ZONE=us-west4-a scripts/tpu_vm.sh create --execute    runs it; then likewise install, run, logs, and delete
#
# Fill in: ZONE, a zone with v5e. Run it in this repository, which `install` copies to the VMs. WORKDIR is a folder that
# all VMs share under the same path (Filestore, or a bucket mounted by gcsfuse); mount it between install and run.
# Costs 16 TPU v5e chips from the time the request is granted until you delete the VMs. `stop` saves and ends the run,
# but does not delete the VMs.
set -euo pipefail

action=${1:?create, install, run, logs, stop or delete}
shift
command=()
if [[ $action == run ]]; then
  command=(-- train --config="${CONFIG:-configs.lm_stdlib}" --workdir="${WORKDIR:?}")
elif [[ $action == create ]]; then
  set -- --type v5litepod-16 --version v2-alpha-tpuv5-lite "$@"
fi
exec convoy launch tpu-vm "$action" --name "${NAME:-convoy-v5e}" --zone "${ZONE:?}" --queued "$@" "${command[@]}"
