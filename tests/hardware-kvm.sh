#!/bin/bash
# Whether hardware virtualization is usable on this machine, by the exit status.
grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]]
