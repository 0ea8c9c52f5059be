#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# deb-boot.sh SUITE RELEASE DEB...: install kernel RELEASE from packages DEB, by dpkg, in
# a fresh Debian SUITE, boot it in an emulated machine with the initramfs that Debian's
# initramfs-tools make there, and let an ordinary user run the sample VMM and tests
# (deb-guest.sh).  Prints KTAP.  Whoever isn't root needs package uidmap.
set -eu
suite=$1 release=$2
shift 2
seconds=$(awk "BEGIN { print int(1500 * ${LAB_FACTOR:-1}) }")	# of the machine
out=build/deb-boot
logs=build/logs/deb-boot
rm -rf $out $logs
mkdir -p $out/debs $out/trial $logs
bail() { echo "not ok 1 $*"; exit 1; }

# The programs, and the unit that starts them.
cp "$@" $out/debs
cp lab/deb-guest.sh build/x86/demo/gmem_demo build/x86/selftests/guest_memfd_test \
	build/x86/selftests/x86/guest_memfd_convert_test $out/trial
echo "$release" >$out/trial/release
cat >$out/trial.service <<EOF
[Unit]
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStartPre=udevadm settle
ExecStart=/opt/trial/deb-guest.sh
[Install]
WantedBy=multi-user.target
EOF

# The initramfs loads the disk's drivers by name: without, it waits for udev, half a minute,
# which is short on a busy machine; rootdelay= sleeps before it looks for the disk.
echo "# Debian $suite with $*"
mmdebstrap --variant=minbase --format=ext2 \
	--include=systemd-sysv,udev,kmod,initramfs-tools,linux-base,zstd \
	--customize-hook='printf "virtio_pci\nvirtio_blk\n" >>"$1/etc/initramfs-tools/modules"' \
	--customize-hook="copy-in $out/debs /tmp" \
	--customize-hook='chroot "$1" sh -c "dpkg -i /tmp/debs/*.deb && rm -r /tmp/debs"' \
	--customize-hook='chroot "$1" useradd --create-home --groups kvm trial' \
	--customize-hook="copy-in $out/trial /opt" \
	--customize-hook="upload $out/trial.service /etc/systemd/system/trial.service" \
	--customize-hook='chroot "$1" systemctl enable trial' \
	--customize-hook="copy-out /boot $out" \
	"$suite" $out/root.ext2 "$(lab/mirror.sh)" >$logs/install.log 2>&1 ||
	bail "cannot be installed, log $logs/install.log"

echo "# booting $release"
timeout --foreground "$seconds" qemu-system-x86_64 -M q35 -accel tcg,thread=single \
	-cpu max,phys-bits=48 -smp 2 -m 2G -nodefaults -no-user-config -display none -no-reboot \
	-serial file:$logs/console.log -serial file:$logs/result.log -snapshot \
	-drive file=$out/root.ext2,format=raw,if=virtio \
	-kernel "$out/boot/vmlinuz-$release" -initrd "$out/boot/initrd.img-$release" \
	-append "root=/dev/vda rw console=ttyS0 no_timer_check panic=-1" </dev/null &
machine=$!
trap 'kill $machine' EXIT
trap 'exit 1' HUP INT TERM
wait $machine || echo "# the machine: status $?"
trap - EXIT

touch $logs/console.log $logs/result.log
tr -d '\r' <$logs/result.log >$out/result
grep -q ^1.. $out/result || bail "the machine ran no test, logs $logs"
planned=$(sed -n 's/^1\.\.//p' $out/result)
sed "s/^1\.\..*/1..$((planned + 1))/" $out/result
bad=0
! grep -q '^not ok' $out/result || bad=1
[ "$(grep -c '^ok\|^not ok' $out/result)" -eq "$planned" ] || bad=1
if lab/bad-words.sh $logs/console.log; then
	bad=1; echo "not ok $((planned + 1)) the kernel complains, logs $logs"
else
	echo "ok $((planned + 1)) the kernel does not complain"
fi
exit $bad
