#!/bin/bash
# `make bench`: the benchmarks with QEMU on this machine, and with cloud-hypervisor: on this machine too where
# hardware KVM is usable, else in the test bed. Network and files are measured with hardware KVM only, since their
# budgets are for that. $PROFILE is the build, a directory below target/. Prints tables, writes target/bench/bench.json.
set -euo pipefail

cd "$(dirname "$0")/.."
export BULKHEAD_CACHE=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
out=target/bench
mkdir -p "$out"
bench=(target/debug/bulkhead-bench --profile "${PROFILE:-release}")

run() {
    local title=$1
    echo "== $title"
    shift
    "$@" | tee "$out/last" | grep -v '^json: '
    sed -n 's/^json: \[\(.*\)\]$/\1/p' "$out/last" | sed "s/\"name\":\"/&$title: /g" >>"$out/parts"
    rm "$out/last"
}

sections=(start idle running pods)
! tests/hardware-kvm.sh || sections=()

rm -f "$out/parts"
run "QEMU, on this machine" "${bench[@]}" --hypervisor qemu "${sections[@]}"
if ! command -v cloud-hypervisor >/dev/null; then
    echo "!!! cloud-hypervisor is not installed: not measured."
elif tests/hardware-kvm.sh; then
    run "cloud-hypervisor, on this machine" "${bench[@]}" --hypervisor cloud-hypervisor
else
    # The bed goes away again, so it can do without huge pages for what a guest touches, page by page.
    run "cloud-hypervisor, in the test bed" tests/test-bed/boot.sh -t 3600 \
        sh -c "sections='${sections[*]}'"'
            "$@" $sections && echo deny >/sys/kernel/mm/transparent_hugepage/shmem_enabled && exec "$@" idle' sh \
        "${bench[@]}" --hypervisor cloud-hypervisor --scratch /bed --patience 6
    # As the bed was in which the budget of starts was set.
    BED_CACHE=auto run "cloud-hypervisor, in the test bed, programs read anew" tests/test-bed/boot.sh -t 3600 \
        "${bench[@]}" --hypervisor cloud-hypervisor --scratch /bed --patience 6 start
fi
echo "[$(paste -sd, "$out/parts")]" >"$out/bench.json"
rm "$out/parts"
echo "written to $out/bench.json"
