#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# image.sh KERNEL FAMILYDIR CROSS: build/KERNEL/initramfs.cpio, with PID 1 and
# the test programs of FAMILYDIR/selftests.
set -eu
kernel=$1 family=$2 cross=$3
out=build/$kernel
list=$out/initramfs.list

[ build/lab/gen_init_cpio -nt build/linux/usr/gen_init_cpio.c ] ||
	gcc -O2 -o build/lab/gen_init_cpio build/linux/usr/gen_init_cpio.c
[ -z "$(find lab/init.c lab/modules.[ch] -newer "$family/lab-init" 2>&1)" ] ||
	"${cross}gcc" -O2 -Wall -Wno-unused-result -static -o "$family/lab-init" lab/init.c lab/modules.c
mkdir -p "$family/stripped"

put() {	# put FILE TO: a program, stripped
	s=$family/stripped/${1##*/}
	# Whole or not at all: a build ahead may be stopped anywhere.
	[ "$s" -nt "$1" ] || { "${cross}strip" -o "$s.new" "$1" && mv "$s.new" "$s"; }
	echo "file $2 $s 0755 0 0"
}

{
	for d in /dev /proc /sys /tmp /tests; do echo "dir $d 0755 0 0"; done
	echo "file /tests/table lab/tests 0644 0 0"
	echo "nod /dev/console 0600 0 0 c 5 1"
	echo "file /init $family/lab-init 0755 0 0"
	for t in guest_memfd_bench $(build/lab/runner -a "${family#build/}*" -L soak -l |
		   awk '{ sub(/\..*/, "", $2); print $2 }' | sort -u); do
		f=$family/selftests/$t
		[ -e "$f" ] || f=$family/selftests/${family#build/}/$t
		[ ! -e "$f" ] || put "$f" "/tests/$t"
	done
	if grep -q '^CONFIG_KVM=m' $out/.config; then
		# What lab/modules.c loads.
		echo "dir /modules 0755 0 0"
		echo "file /modules/irqbypass.ko $out/virt/lib/irqbypass.ko 0644 0 0"
		echo "file /modules/kvm.ko $out/arch/x86/kvm/kvm.ko 0644 0 0"
		echo "file /modules/kvm_amd.ko $out/arch/x86/kvm/kvm-amd.ko 0644 0 0"
	fi
	for demo in gmem_demo secret_demo; do
		[ ! -e "$family/demo/$demo" ] || echo "file /$demo $family/demo/$demo 0755 0 0"
	done
	pkvm=$family/pkvm
	if [ -e "$pkvm/vmm" ]; then
		# The Image is its own guest.
		echo "dir /pkvm 0755 0 0"
		put "$pkvm/vmm" /pkvm/vmm
		put "$pkvm/vmm_test" /tests/vmm_test
		echo "file /pkvm/guest.cpio $pkvm/guest.cpio 0644 0 0"
		echo "file /pkvm/Image $out/arch/arm64/boot/Image 0644 0 0"
	fi
} >$list
build/lab/gen_init_cpio -t 0 $list >$out/initramfs.cpio
