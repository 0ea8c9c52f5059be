#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# arguments.sh GOAL...: can what the user has set be meant?  Asked before anything
# is installed, fetched or built.  The variables: LAB_BASE, LAB_TO, LAB_KERNEL_SRC,
# LAB_ARCH, LAB_LEVEL, LAB_FLAVOUR, LAB_JOBS, LAB_FACTOR.
set -euf
fail() { echo "lab: $*" >&2; exit 1; }

case $PWD in
*[[:space:]:]*) fail "a kernel cannot be built below a directory with a blank or a colon in its name: $PWD" ;;
esac

case $LAB_BASE in
''|*/*|.*) known= ;;
*) [ -e "bases/$LAB_BASE/pin.mk" ] && known=1 || known= ;;
esac
[ "$known" ] || fail "BASE=$LAB_BASE: there are $(set +f; ls bases/*/pin.mk | cut -d/ -f2 | paste -sd, | sed 's/,/, /g')"
case " $* " in
*" rebase "*)
	echo "$LAB_TO" | grep -qxE '[0-9]+\.[0-9]+(\.[0-9]+)?(-rc[0-9]+)?' ||
		fail "TO=$LAB_TO: which base?  Say TO=7.4, or TO=$LAB_BASE for the newest release of $LAB_BASE"
	[ -z "$LAB_KERNEL_SRC" ] || [ -e "$LAB_KERNEL_SRC" ] || fail "KERNEL_SRC=$LAB_KERNEL_SRC: no such file or directory" ;;
*)	[ -z "$LAB_TO" ] || fail "TO=$LAB_TO: only make rebase goes somewhere; BASE= selects a base" ;;
esac

for a in $(echo "$LAB_ARCH" | tr , ' '); do
	case $a in
	x86|x86-debug|x86-shadow|x86-kcsan|arm64|arm64-protected|arm64-debug|host) ;;
	x86\*|arm64\*) ;;
	*) fail "ARCH=$LAB_ARCH: there are x86, x86-debug, x86-shadow, x86-kcsan, arm64, arm64-protected, arm64-debug, host; x86* and arm64* stand for all of their kind" ;;
	esac
done
case $LAB_LEVEL in
quick|full|soak) ;;
*) fail "LEVEL=$LAB_LEVEL: there are quick, full, soak" ;;
esac
for goal in "$@"; do
	case $goal=$LAB_ARCH in
	*=) ;;
	shell=host|gdb=host|shell=*,*|gdb=*,*)
		fail "ARCH=$LAB_ARCH: $goal boots one of x86, x86-debug, x86-shadow, x86-kcsan, arm64, arm64-protected, arm64-debug" ;;
	demo=host|bench=host|demo=*-debug|bench=*-debug|demo=*-kcsan|bench=*-kcsan|demo=*,*|bench=*,*)
		fail "ARCH=$LAB_ARCH: $goal is for one of x86, arm64" ;;
	esac
done
case $LAB_FLAVOUR in
cloud-amd64|amd64|cloud-arm64|arm64) ;;
*) fail "FLAVOUR=$LAB_FLAVOUR: there are cloud-amd64, amd64, cloud-arm64, arm64" ;;
esac
case $LAB_JOBS in
''|*[!0-9]*|0*) fail "JOBS=$LAB_JOBS: must be a number above 0" ;;
esac
case $LAB_FACTOR in
*[!0-9.]*|*.*.*) ;;
*[1-9]*) exit 0 ;;
esac
fail "FACTOR=$LAB_FACTOR: the time-out factor must be a number above 0"
