#!/bin/sh
# Prints what a process sees of its container, a line each: KEY VALUE.
self=/proc/self

# Opened for writing; nothing is written.
writable() { if (: >>"$1") 2>/dev/null; then echo yes; else echo no; fi; }

echo "args $*"
echo "cwd $(pwd)"
echo "hostname $(hostname)"
echo "umask $(umask)"
env | sort | grep -v '^SHLVL=\|^_=\|^PWD=' | sed 's/^/env /'
grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' $self/status | tr '\t' ' ' | sed 's/^/status /'
sed 1d $self/limits | sed 's/  */ /g; s/ $//; s/^/limit /'
echo "oom_score_adj $(cat $self/oom_score_adj)"
echo "first process $([ $$ = 1 ] && echo yes || echo no)"
echo "interfaces $(ls /sys/class/net 2>/dev/null | tr '\n' ' ')"
sed 's/^/mount /' $self/mountinfo
ls -lA /dev 2>/dev/null | sed 1d | awk '{
    if ($1 ~ /^[bc]/) print "dev", $10, $1, $3, $4, $5 $6;
    else if ($1 ~ /^l/) print "dev", $9, "link", $11;
    else print "dev", $9, $1, $3, $4 }'
for path in /proc/kcore /proc/keys /proc/timer_list /proc/acpi /proc/scsi /sys/firmware /etc/passwd $PROBE_PATHS; do
    if [ -d "$path" ]; then content=$(ls -A "$path" 2>/dev/null | head -c 1)
    else content=$(head -c 1 "$path" 2>/dev/null | wc -c | tr -d 0); fi
    echo "content $path $([ -n "$content" ] && echo visible || echo hidden)"
done
for path in /proc/sys/kernel/domainname /proc/sysrq-trigger /etc/passwd /tmp/new /dev/shm/new /dev/new $PROBE_PATHS; do
    echo "writable $path $(writable "$path")"
done
for key in $PROBE_SYSCTLS; do
    echo "sysctl $key $(cat "/proc/sys/$key")"
done
[ -z "$PROBE_RUN" ] || sh -c "$PROBE_RUN" 2>&1 | sed 's/^/run /'
echo end
exit "${PROBE_EXIT:-0}"
