#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# demo.sh FILE: boot the x86 kernel, let the demo work on FILE.  Its output comes
# to this terminal, the kernel's messages to build/logs/demo/kernel.log.
set -eu
file=$(realpath "$1")
out=build/demo
log=build/logs/demo/kernel.log
[ -x build/x86/demo/gmem_demo ] || { echo "lab: build/linux has no samples/guest_memfd" >&2; exit 1; }
mkdir -p $out build/logs/demo
# gen_init_cpio splits at blanks; a link has none in its name.
ln -sfn "$file" $out/data
echo "file /data $out/data 0644 0 0" >$out/list
build/lab/gen_init_cpio $out/list >$out/data.cpio
cat build/x86/initramfs.cpio $out/data.cpio >$out/initramfs.cpio
rm -f $log
build/lab/runner -a x86 -s lab.demo -i $out/initramfs.cpio -c $log </dev/null | tr -d '\r'
grep -qs 'lab: demo status 0' $log && exit 0
echo "lab: the demo failed or did not finish; log $log" >&2
exit 1
