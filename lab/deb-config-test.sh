#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# deb-config-test.sh FRAGMENT...: of what make deb-config has made of Debian's
# cloud-amd64: is all in it that was asked for, is what cannot be refused by name, does
# the changelog tell, do the headers need what their tools do.  Nothing is compiled.  Prints KTAP.
set -eu
made=build/deb/cloud-amd64
out=build/deb/config-test
rm -rf $out/debian $out/.config*
mkdir -p $out/debian
n=0 bad=0

result() {	# result STATUS TEXT
	n=$((n + 1))
	[ "$1" -eq 0 ] && echo "ok $n $2" || { bad=1; echo "not ok $n $2"; sed 's/^/# /' $out/said; }
}

# refused LINES [FRAGMENT...]: config.sh names LINES, and only them.
refused() {
	lines=$1
	shift
	printf '%s\n' $lines >$out/more.config
	r=0
	! lab/config.sh -b $made/.config.debian build/linux $out x86_64 "$@" $out/more.config >$out/said 2>&1 || r=1
	[ "$(cat $out/said)" = "lab: $out: these requested lines did not survive: $lines" ] || r=1
	result $r "$lines is refused"
}

echo "KTAP version 1"
echo "1..6"
for line in CONFIG_KVM_SW_PROTECTED_VM=y CONFIG_KVM_INTEL_TDX=y CONFIG_KVM_AMD_SEV=y CONFIG_IOMMUFD=m \
	CONFIG_KEXEC_HANDOVER=y 'CONFIG_MODULE_SIG_KEY=""' 'CONFIG_SYSTEM_TRUSTED_KEYS=""' CONFIG_DEBUG_INFO_NONE=y; do
	grep -qxF "$line" $made/.config || echo "no $line"
done >$out/said
result "$(grep -c . $out/said)" "the lines that matter are in the configuration"
grep -qx CONFIG_VIRTIO_BLK=m $made/.config && grep -qx CONFIG_KVM_AMD=m $made/.config && r=0 || r=1
result $r "the rest is Debian's"

refused "CONFIG_NO_SUCH_OPTION=y CONFIG_ARM64_SVE=y" "$@"
# It needs another line, which is not asked for.
refused CONFIG_KVM_INTEL_TDX=y lab/config/deb-plain.config

cp $made/.config $made/.config.debian $made/.config.requested $out
printf 'linux-gmem (1-1) unstable; urgency=low\n\n  * Custom built Linux kernel.\n\n -- me\n' >$out/debian/changelog
printf 'Source: s\n\nPackage: linux-image-1\nArchitecture: any\n\nPackage: linux-headers-1\nArchitecture: any\n' >$out/debian/control
r=0
(cd $out && ../../../lab/deb-hook.sh) >$out/said 2>&1 || r=1
cat $out/debian/changelog >>$out/said
for line in ' KVM_SW_PROTECTED_VM n -> y' +KVM_INTEL_TDX\ y ' IOMMUFD n -> m' -DEBUG_INFO_BTF\ y; do
	grep -qxF "    $line" $out/debian/changelog || r=1
done
grep -q Custom $out/debian/changelog && r=1
[ "$(tail -n 1 $out/debian/changelog)" = ' -- me' ] || r=1
result $r "the changelog has the changed lines"
cp $out/debian/control $out/said
r=0
[ "$(grep -B 1 '^Depends:' $out/said | tr '\n' ' ')" = "Package: linux-headers-1 Depends: libelf1 " ] || r=1
result $r "the headers' package needs libelf, and no other does"
exit $bad
