#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# export-files.sh OUT COMMIT TMP: the writing half of export.sh.  TMP has the
# new seams, steps and list of own files; a file that would not change is not
# written.
set -eu
. lab/git.sh
out=$1 final=$2 tmp=$3

put() {	# put FILE TO
	cmp -s "$1" "$2" && return
	mkdir -p "$(dirname "$2")"
	cp "$1" "$2"
	echo "lab: wrote $2"
}

# What no base's series names any more goes.
own_files "$out" | comm -23 - "$tmp/own.live" | while read -r f; do
	rm -f "$out/$data/own/$f"
	grep -lxF "	$f" "$out"/bases/*/series | grep -qvxF "$out/$data/series" || rm -f "${out:?}/$f"
done
while read -r f; do
	to=$out/$(own_path "$out" "$f")
	git -C $tree cat-file blob "$final:$f" >"$tmp/file"
	put "$tmp/file" "$to"
	case $(git -C $tree ls-tree "$final" "$f") in
	100755*) chmod +x "$to" ;;
	*) chmod -x "$to" ;;
	esac
done <"$tmp/own.live"

for p in "$out/$data"/seams/*.patch; do
	[ -e "$tmp/seams/$(basename "$p")" ] || rm -f "$p"
done
for p in "$tmp"/seams/*.patch; do
	[ ! -e "$p" ] || put "$p" "$out/$data/seams/$(basename "$p")"
done

# A step stays in its set; a new one, or one that was moved, joins its neighbours.
steps "$out" | cut -d' ' -f1,2 >"$tmp/sets"
{
	echo "# SPDX-License-Identifier: GPL-2.0"
	echo "# [set], a series of its own to mail; steps (seams/STEP.patch), in order; indented,"
	echo "# the files of this project that a step adds."
	awk 'part == 1 { if (!($1 in at)) name[at[$1] = ++n] = $1; set[$2] = at[$1]; next }
	     /^[^\t]/ {
		s = $1 in set ? set[$1] : !now
		if (s > now) {
			print "[" (s in name ? name[s] : "guest_memfd") "]"
			now = s
		}
	     }
	     { print }' part=1 "$tmp/sets" part=2 "$tmp/steps"
} >"$tmp/series.new"
put "$tmp/series.new" "$out/$data/series"

comm -12 "$tmp/base" "$tmp/own.live" | while read -r f; do
	echo "$(git -C $tree cat-file blob "$refs/base:$f" | sha256sum | cut -d' ' -f1)  $f"
done >"$tmp/replaced.new"
if [ -s "$tmp/replaced.new" ]; then
	put "$tmp/replaced.new" "$out/$data/replaced.sha256"
else
	rm -f "$out/$data/replaced.sha256"
fi
