#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# arguments.sh GOAL...: can what the user has set be meant?  Asked before anything
# is installed, fetched or built.  The variables: LAB_ARCH, LAB_LEVEL, LAB_JOBS,
# LAB_FACTOR.
set -euf
fail() { echo "lab: $*" >&2; exit 1; }

case $PWD in
*[[:space:]:]*) fail "a kernel cannot be built below a directory with a blank or a colon in its name: $PWD" ;;
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
case $LAB_JOBS in
''|*[!0-9]*|0*) fail "JOBS=$LAB_JOBS: must be a number above 0" ;;
esac
case $LAB_FACTOR in
*[!0-9.]*|*.*.*) ;;
*[1-9]*) exit 0 ;;
esac
fail "FACTOR=$LAB_FACTOR: the time-out factor must be a number above 0"
