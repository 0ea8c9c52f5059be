#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# demo.sh ARCH FILE [secret]: boot the kernel of ARCH (x86, arm64), let the demo, or
# that of memory which the host cannot read, work on FILE.  Its output comes to this
# terminal, the kernel's messages to build/logs/demo/kernel.log.
set -eu
arch=$1
file=$(realpath "$2")
out=build/demo
log=build/logs/demo/kernel.log
case $arch in
x86)	platform=x86 program=demo/${3:-gmem}_demo sample=guest_memfd ;;
arm64)	platform=arm64-protected program=pkvm/vmm sample=pkvm ;;
esac
[ -x build/$arch/$program ] || { echo "lab: build/linux has no samples/$sample" >&2; exit 1; }
mkdir -p $out build/logs/demo
# gen_init_cpio splits at blanks; a link has none in its name.
ln -sfn "$file" $out/data
echo "file /data $out/data 0644 0 0" >$out/list
build/lab/gen_init_cpio $out/list >$out/data.cpio
cat build/$arch/initramfs.cpio $out/data.cpio >$out/initramfs.cpio
rm -f $log
build/lab/runner -a $platform -s lab.demo${3:+=$3} -i $out/initramfs.cpio -c $log </dev/null | tr -d '\r'
grep -qs 'lab: demo status 0' $log && exit 0
echo "lab: the demo failed or did not finish; log $log" >&2
exit 1
