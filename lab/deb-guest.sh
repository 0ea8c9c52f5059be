#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# deb-guest.sh: started by systemd, as root, in the machine that lab/deb-boot.sh boots.
# What users of the packages do, as one of them.  KTAP, on the second serial port.
exec </dev/null >/dev/ttyS1 2>&1
cd /opt/trial || exit 1
n=0

# A test that skips all of its cases has not passed.
check() {	# check TEXT COMMAND...
	text=$1
	n=$((n + 1))
	shift
	"$@" >/tmp/said 2>&1
	status=$?
	! grep -q 'Totals: pass:0 ' /tmp/said || status=skipped
	sed 's/^/# /' /tmp/said
	[ $status = 0 ] && echo "ok $n $text" || echo "not ok $n $text (status $status)"
}
as_user() { setpriv --reuid=trial --regid=trial --init-groups "$@"; }

echo "KTAP version 1"
echo "1..8"
check "the kernel is that of the package" [ "$(uname -r)" = "$(cat release)" ]
check "udev has kvm-amd loaded" grep -w ^kvm_amd /proc/modules
check "/dev/kvm is group kvm's" [ "$(stat -c '%G %a' /dev/kvm)" = "kvm 660" ]
check "the user is in group kvm" as_user sh -c 'id && [ "$(id -u)" != 0 ] && id -nG | grep -qw kvm'
check gmem_demo as_user ./gmem_demo /usr/share/common-licenses/GPL-2
check guest_memfd_test as_user ./guest_memfd_test
check guest_memfd_convert_test as_user ./guest_memfd_convert_test
check "modules go when nobody uses them" modprobe -r kvm_amd kvm
