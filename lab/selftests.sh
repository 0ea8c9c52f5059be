#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# selftests.sh ARCH CROSS JOBS: build, static, the KVM selftests that lab/tests
# names for ARCH (x86, arm64), the benchmark, the document's example and the
# samples, into build/ARCH/selftests, build/x86/demo and build/arm64/pkvm.
set -eu
arch=$1 cross=$2 jobs=$3
top=$PWD
src=build/linux/tools/testing/selftests/kvm
out=$top/build/$arch/selftests
want=
case $arch in x86) karch=x86_64 ;; *) karch=$arch ;; esac

for t in $(build/lab/runner -a "$arch*" -L soak -l | awk '{ sub(/\..*/, "", $2); print $2 }' | sort -u); do
	case $t in
	kunit:*|modules|vmm_test|guest_memfd_example) continue ;;
	esac
	[ ! -e "$src/$arch/$t.c" ] || t=$arch/$t
	want="$want $out/$t"
done
[ $arch != x86 ] || want="$want $out/x86/guest_memfd_bench"
mkdir -p "$out"
# With a base directory ccache writes relative targets into the dependency files;
# those of the selftests are absolute, and headers would be no dependencies.
unset MAKEFLAGS MAKELEVEL CCACHE_BASEDIR
export LDFLAGS=-static
# The kernel's headers are rewritten only where they differ.
lab/progress.sh "headers $arch" build/logs/headers-$arch.log 0 \
	make -C build/linux O="$top/build/$arch" ARCH=$karch headers_install >build/logs/headers-$arch.out ||
	{ cat build/logs/headers-$arch.out; exit 1; }
lab/progress.sh "selftests $arch" build/logs/selftests-$arch.log 40 \
	make -C $src -j"$jobs" ARCH=$arch CROSS_COMPILE="$cross" CC="ccache ${cross}gcc" \
	OUTPUT="$out" KHDR_INCLUDES="-isystem $top/build/$arch/usr/include" $want
doc=build/linux/Documentation/virt/kvm/guest_memfd.rst
if [ $arch = x86 ] && [ -e $doc ]; then
	awk -v section="A worked example" -f lab/example.awk $doc >"$out/guest_memfd_example.h"
	lab/progress.sh example build/logs/example-build.log 0 \
		ccache gcc -O2 -Wall -Wextra -Werror -static -isystem build/x86/usr/include -I "$out" \
		-o "$out/guest_memfd_example" lab/example.c
fi
if [ $arch = x86 ] && [ -e build/linux/samples/guest_memfd/Makefile ]; then
	mkdir -p build/x86/demo
	lab/progress.sh demo build/logs/demo-build.log 0 \
		make -C build/linux/samples/guest_memfd O="$top/build/x86/demo" CC="ccache gcc" \
		HDRS="$top/build/x86/usr/include"
fi
if [ $arch = arm64 ] && [ -e build/linux/samples/pkvm/Makefile ]; then
	mkdir -p build/arm64/pkvm
	lab/progress.sh pkvm build/logs/pkvm-build.log 0 \
		make -C build/linux/samples/pkvm O="$top/build/arm64/pkvm" CC="ccache ${cross}gcc" \
		HDRS="$top/build/arm64/usr/include"
fi
