#!/bin/bash
# Every test of the project, each part with its log in target/test-logs. The last lines are the summary.
#
# PARTS="unit qemu-2 ..." runs only those parts; MEGABYTES=1024 sends that much through the streams under QEMU.
set -euo pipefail

cd "$(dirname "$0")/.."
export BULKHEAD_CACHE=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}
logs=target/test-logs
rm -rf "$logs"
mkdir -p "$logs"

e2e=(tests/contained.sh target/debug/bulkhead-e2e --profile "${PROFILE:-debug}")
# Without KVM everything is several times slower.
qemu=(--hypervisor qemu --patience 3)

# What of the end-to-end tests is run in the test bed, where each takes ten times as long: what a VMM has a hand in, once.
# `make test-bed` runs more of them, for as long as everything else takes together.
bed=(api.whole_life api.pause_exec run.hello run.kernel exec.output_ terminal.exec streams.in_and_out streams.tail
    streams.slow events.pause events.vm_lost events.daemon_lost lifecycle.metrics lifecycle.shim_killed tool.check
    tool.inspect size.back size.cgroup refusals.vmm_ends refusals.panic refusals.not_a hostile.vandal spare.life
    spare.size pods.vm_lost storage.blockfile storage.device_pod storage.full diff.plain)

# What the other containerd has a hand in. What a guest's programs find, what VMMs refuse, and what the shim makes of a
# spec, of volumes, disks and networks, is the same with whichever there is.
older=(api. run. exec. terminal. streams.{in_and,tail,slow} events. lifecycle. tool. net.cni spare.life refusals.config_key
    pods.{many,containerd,exit,status,list,container,pod_,cgroup,exec,attach,stdin,log,forward,share,pid_,run,privileged}
    pods.{seccomp,leaves,unknown,one_vm,vm_lost,sandbox,annotations,hostname,dns,shm,drop_in,stop,restart,again,oom}
    pods.{addresses,host_p,statistics,empty_dir,no_image} storage.block_pod storage.device_pod specs.no_root)

part_lint() { make --no-print-directory lint; }
# Some of them run the real virtiofsd.
part_unit() { PATH=$BULKHEAD_CACHE/tools/bin:$PATH cargo test --locked --workspace; }
# runc first: a test that it fails is a wrong test.
part_runc-2() { "${e2e[@]}" --runtime runc --containerd 2 --megabytes 64 --skip diff. ; }
part_runc-1.6() { "${e2e[@]}" --runtime runc --containerd 1.6 --megabytes 64 "${older[@]}"; }
part_qemu-2() { "${e2e[@]}" --containerd 2 "${qemu[@]}" --megabytes "${MEGABYTES:-128}"; }
part_qemu-2-sandbox() { "${e2e[@]}" --containerd 2 "${qemu[@]}" --sandboxer shim pods. ; }
part_qemu-1.6() { "${e2e[@]}" --containerd 1.6 "${qemu[@]}" --megabytes 64 "${older[@]}"; }
part_cloud-hypervisor() {
    # Where hardware virtualization is usable, its tests need no machine around them.
    if command -v cloud-hypervisor >/dev/null && tests/hardware-kvm.sh; then
        "${e2e[@]}" --containerd 2 --hypervisor cloud-hypervisor
    else
        tests/test-bed/run-tests.sh "${bed[@]}"
    fi
}

# run PART: its output to its log, its outcome beside it.
run() {
    local started=$SECONDS code=0
    (set -o pipefail; "part_$1" 2>&1 | tee "$logs/$1.log" | sed -u "s/^/[$1] /") </dev/null || code=$?
    echo "$code $((SECONDS - started))" >"$logs/$1.outcome"
}

# counts PART: passed, failed and skipped, from the closing lines that cargo and our own runner print.
counts() {
    awk '
        /^test result:/ { passed += $4; failed += $6; skipped += $8 }
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { passed += $1; failed += $3; skipped += $5 }
        END { print passed + 0, failed + 0, skipped + 0 }' "$logs/$1.log"
}

# failures PART: what its log says of them, so that the last lines of a run are enough to know.
failures() {
    echo "--- $1, in $logs/$1.log:"
    awk '
        /FAILED|panicked at|^error/ { left = 10 }
        left > 0 && lines < 60 { print substr($0, 1, 400); left--; lines++ }
        { last[NR % 15] = $0 }
        END { if (!lines) for (i = NR > 15 ? NR - 14 : 1; i <= NR; i++) print last[i % 15] }' "$logs/$1.log"
}

read -ra parts <<<"${PARTS:-lint unit runc-2 runc-1.6 qemu-2 qemu-2-sandbox qemu-1.6 cloud-hypervisor}"

trap 'exit 130' INT TERM

# The test bed has one processor, so it takes one of this machine's and leaves the others to the rest.
background=
for part in "${parts[@]}"; do
    [[ $part == cloud-hypervisor ]] || continue
    # In a group of its own, since bash has what it starts so ignore ^C.
    set -m
    run cloud-hypervisor &
    background=$!
    set +m
    trap 'kill -- "-$background" 2>/dev/null || true' EXIT
done
for part in "${parts[@]}"; do
    [[ $part == cloud-hypervisor ]] || run "$part"
done
[[ -z $background ]] || wait "$background"

total=(0 0 0)
echo
for part in "${parts[@]}"; do
    read -r code _ <"$logs/$part.outcome"
    [[ $code == 0 ]] || failures "$part"
done
printf '%-18s %7s %7s %7s %7s   %s\n' part passed failed skipped seconds outcome
for part in "${parts[@]}"; do
    read -r code seconds <"$logs/$part.outcome"
    read -r passed failed skipped < <(counts "$part")
    # A part that fails without a count has failed as a whole: lint, or a program that did not start.
    [[ $code == 0 || $failed != 0 ]] || failed=1
    # So does lint pass as a whole.
    [[ $code != 0 || $((passed + skipped)) != 0 ]] || passed=1
    printf '%-18s %7s %7s %7s %7s   %s\n' "$part" "$passed" "$failed" "$skipped" "$seconds" \
        "$([[ $code == 0 ]] && echo ok || echo FAILED)"
    total=($((total[0] + passed)) $((total[1] + failed)) $((total[2] + skipped)))
done
echo
if [[ " ${parts[*]} " == *" cloud-hypervisor "* ]] && ! command -v cloud-hypervisor >/dev/null; then
    echo '!!! cloud-hypervisor is not installed: NOT ONE of its tests ran. Install it (v52 or later) to run them.'
fi
echo "${total[0]} passed, ${total[1]} failed, ${total[2]} skipped"
[[ ${total[1]} == 0 ]]
