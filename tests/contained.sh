#!/bin/bash
# contained.sh PROGRAM ARGUMENT...: runs a program of the tests in PID and mount namespaces of its own and with a scratch
# directory, so that of one which is broken off (^C) no shim and no VM goes on, and nothing stays mounted.
set -euo pipefail

scratch=$(mktemp -d /tmp/b-XXXXXX)
trap 'rm -rf "$scratch"; exit 130' HUP INT TERM
# Its first process does not end by a signal; it ends with the program, and the others with it. The kubelet's mounts, which
# the tests make, have to be shared.
code=0
unshare --pid --fork --kill-child --mount-proc bash -c 'mount --make-rshared / && "$@"; exit $?' contained \
    "$@" --scratch "$scratch" || code=$?
# Logs of what failed are kept there.
rmdir "$scratch" 2>/dev/null || true
exit "$code"
