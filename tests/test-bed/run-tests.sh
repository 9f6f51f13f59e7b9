#!/bin/bash
# The end-to-end tests with cloud-hypervisor, in the test bed. Arguments go to bulkhead-e2e.
#
# Everything is ten times slower there, so the streams are shorter, and what doesn't depend on the VMM
# (the specs of the differential test, one by one) is left to QEMU, but for a few.
set -euo pipefail

cd "$(dirname "$0")/../.."
export BULKHEAD_CACHE=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}

[[ $# -gt 0 ]] || set -- run. exec. terminal. streams. lifecycle. events. api. refusals. hostile. spare. tool. \
    pods.run pods.exec_sync pods.forward pods.config_map pods.pid_ pods.shm pods.one_vm pods.vm_lost \
    pods.containerd_restart pods.propagation pods.read_only pods.annotations \
    storage.empty_dir storage.full storage.upper storage.block storage.layers storage.device storage.socket storage.image storage.rootfs storage.locks storage.attack \
    diff.plain diff.user diff.bind_directory diff.memory_limit

if ! command -v cloud-hypervisor >/dev/null; then
    echo "cloud-hypervisor is not installed: its tests can't run" >&2
    echo "0 passed, 0 failed, $(target/debug/bulkhead-e2e --list --hypervisor cloud-hypervisor "$@" | wc -l) skipped"
    exit 0
fi
exec tests/test-bed/boot.sh -t "${BED_SECONDS:-7200}" target/debug/bulkhead-e2e \
    --hypervisor cloud-hypervisor --profile "${PROFILE:-debug}" \
    --scratch /bed --threads 2 --patience 6 --megabytes 64 "$@"
