#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# qemu.sh [CASE...]: this machine's QEMU, as it is, once more as the VMM inside the
# emulated machine; its VMs boot the lab's own kernel with their RAM in a guest_memfd.
# lab/qemu/client.c has the cases, preload.c what QEMU doesn't know.  Prints KTAP.
set -eu
[ $# -gt 0 ] || set -- pc-smm q35-smm huge-q35-smm in-place-pc in-place-huge-pc
seconds=$(awk "BEGIN { print int(240 * ${LAB_FACTOR:-1}) }")	# a case
out=build/qemu
logs=build/logs/qemu
kernel=build/x86/arch/x86/boot/bzImage
qemu=$(command -v qemu-system-x86_64) || { echo "not ok 1 no qemu-system-x86_64 here"; exit 1; }
mkdir -p $out $logs
rm -f $logs/*

cc() { gcc -O2 -Wall -Wextra -isystem build/x86/usr/include "$@"; }
cc -static -o $out/client lab/qemu/client.c lab/modules.c
cc -static -o $out/guest lab/qemu/guest.c
cc -shared -fPIC -o $out/preload.so lab/qemu/preload.c

cat >$out/guest.list <<EOF
dir /dev 0755 0 0
nod /dev/console 0600 0 0 c 5 1
file /init $out/guest 0755 0 0
EOF
build/lab/gen_init_cpio -t 0 $out/guest.list >$out/guest.cpio

# QEMU tells where its firmware may be; what libraries it takes, the loader does.
dirs=$($qemu -L help)
{
	for d in /dev /lib64 /qemu; do echo "dir $d 0755 0 0"; done
	echo "nod /dev/console 0600 0 0 c 5 1"
	echo "file /init $out/client 0755 0 0"
	echo "file /qemu/qemu-system-x86_64 $(realpath "$qemu") 0755 0 0"
	ldd "$qemu" | awk '
		$1 ~ /^\// { print "file", $1, $1, "0755 0 0" }
		$3 ~ /^\// { print "file /qemu/" $1, $3, "0755 0 0" }'
	for f in bios-256k.bin kvmvapic.bin linuxboot_dma.bin; do
		for d in $dirs; do
			[ ! -e "$d/$f" ] || { echo "file /qemu/$f $d/$f 0644 0 0"; break; }
		done
	done
	grep ' /modules' build/x86/initramfs.list
	for f in $out/preload.so $out/guest.cpio $kernel; do
		echo "file /qemu/${f##*/} $f 0644 0 0"
	done
} >$out/list
build/lab/gen_init_cpio -t 0 $out/list >$out/initramfs.cpio

# One CPU: with two that take turns a VM in the machine hardly gets on.  The kernel gives
# up if the timer's interrupts don't come while it looks, as on a busy machine.
timeout --foreground $((seconds * 6)) "$qemu" -M q35 -accel tcg,thread=single \
	-cpu max,phys-bits=48 -smp 1 -m 1G -nodefaults -no-user-config -display none -no-reboot \
	-serial file:$logs/console.log -serial file:$logs/result.log \
	-kernel $kernel -initrd $out/initramfs.cpio \
	-append "console=ttyS0 no_timer_check kunit.autorun=0 panic=-1 -- $seconds $*" \
	</dev/null &
machine=$!
trap 'kill $machine' EXIT
trap 'exit 1' HUP INT TERM
wait $machine || echo "# the machine: status $?"
trap - EXIT

echo "KTAP version 1"
echo "1..$(($# + 1))"
echo "# $($qemu --version | head -n 1)"
touch $logs/console.log $logs/result.log
tr -d '\r' <$logs/result.log >$out/result
grep '^#' $out/result || :
n=0 bad=0
for c in "$@"; do
	n=$((n + 1))
	said=$(grep -E "^(not )?ok ${c}[: ]" $out/result || :)
	case $said in
	"ok "*) echo "ok $n ${said#ok }" ;;
	*) bad=1; said=${said#not ok }; echo "not ok $n ${said:-$c did not end}, logs $logs" ;;
	esac
done

# The words that tests must not make the kernel say, here neither host nor guest.
if lab/bad-words.sh $logs/console.log $out/result; then
	bad=1; echo "not ok $((n + 1)) a kernel complains, logs $logs"
else
	echo "ok $((n + 1)) no kernel complains"
fi
exit $bad
