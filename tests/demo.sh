#!/bin/bash
# `make demo`: what it is about is in src/bin/demo.rs. The VMM is the one that "auto" chooses.
set -euo pipefail
cd "$(dirname "$0")/.."
exec tests/contained.sh target/debug/bulkhead-demo --profile "${PROFILE:-debug}" --hypervisor auto "$@"
