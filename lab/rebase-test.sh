#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# rebase-test.sh: a copy of the project is worked on as a developer would: edits are
# exported to the steps that they belong to, and the series is carried over to another
# base.  The kernel is small, it has the files that steps touch.  Prints KTAP.
set -eu
. lab/git.sh
top=$PWD/build/rebase-test
copy=$top/copy n=0 bad=0
rm -rf "$top"
mkdir -p "$copy" "$top/linux"

result() {	# result STATUS TEXT
	n=$((n + 1))
	[ "$1" -eq 0 ] && echo "ok $n $2" || { bad=1; echo "not ok $n $2"; sed 's/^/# /' "$top/out"; }
}
is() {	# is TEXT COMMAND...
	text=$1
	shift
	"$@" >"$top/said" 2>&1 && r=0 || r=1
	result $r "$text"
}
run() {
	(cd "$copy" && env -i PATH="$PATH" HOME="$top" make "$@" >"$top/out" 2>&1 </dev/null)
}
refused() {	# refused TEXT ARGUMENT...
	text=$1 r=0
	shift
	! run "$@" && grep '^lab: ' "$top/out" | grep -qF "$text" || r=1
	result $r "$* is refused: $text"
}
g() { git -C "$copy/build/linux" "$@"; }
p() { git -C "$copy" "$@"; }
save() { p add -A && p commit -q --allow-empty -m saved; }
# What has changed in the project, and nothing else.
changed() { [ "$(p status --porcelain -uall | sed 's/^...//' | sort)" = "$(printf '%s\n' "$@" | sort)" ]; }
# Lines that the series adds and takes away on base $1, in files that are the base's.
lines() { g diff --no-renames --diff-filter=M "refs/lab/$1/base" "refs/lab/$1/composed" | grep '^[-+]' | grep -v '^+++\|^---\|^index' | sort | sha256sum; }

# The project with this base alone, and its small kernel.
{ find Makefile lab bases/cover "$data" -type f; own_files .; } |
	while read -r f; do [ ! -e "$f" ] || echo "$f"; done | tar -c -T - | tar -x -C "$copy"
sed -i "s/^BASE[ \t]*?=.*/BASE ?= $base/" "$copy/Makefile"
echo /build >"$copy/.gitignore"
p init -q
save
git -C $tree diff --no-renames --name-only "$refs/base" "$refs/composed" >"$top/touched"
{ echo .gitattributes; echo Makefile; git -C $tree ls-tree -r --name-only "$refs/base" | grep -xFf "$top/touched"; } |
	xargs git -C $tree archive "$refs/base" -- | tar -x -C "$top/linux"

echo "KTAP version 1"
is "a small kernel becomes the base, and the project composes" run tree KERNEL_SRC="$top/linux"
is "an export of nothing" run export
is "... changes nothing" changed

# Edits.
maintainers=$data/seams/$(cd "$data/seams" && grep -l 'diff --git a/MAINTAINERS' ./*.patch | sed 's,^./,,;q')
own=$(own_files . | grep '\.c$' | head -n 1)
several=$(sed -n 's,^diff --git a/\(.*\.c\) b/.*,\1,p' "$data"/seams/*.patch | sort | uniq -c | sort -rn | awk '{ print $2; exit }')
added=$(sed -n 's/^+\(F:[^*]*\)/\1/p' "$maintainers" | tail -n 1)
echo "/* edit */" >>"$copy/build/linux/$own"
sed -i "s,^$added,&x," "$copy/build/linux/MAINTAINERS"
is "make tree with edits" run tree
is "... says that they are not exported" grep -qx "lab: build/linux has edits that are not exported" "$top/out"
is "an export of edits" run export
is "... puts them into the own file, and the step that added the line" changed "$own" "$maintainers"
is "... and leaves no edits" run tree
is "... behind" test ! -s "$top/out"
save

sed -i '2s/$/ edited/' "$copy/build/linux/$several"
refused "belong to no step in particular" export
is "... which names $several" grep -q "^  $several:2\$" "$top/out"
is "... and changes nothing" changed
mkdir -p "$copy/build/linux/.git/info"
echo "/$several merge=union" >"$copy/build/linux/.git/info/attributes"
refused "has git merge steps that conflict" export
rm "$copy/build/linux/.git/info/attributes"
step=$(steps . | awk 'END { print $2 }')
subject=$(sed -n 's/^Subject: //p' "$data/seams/$step.patch")
g commit -q -a -m "fixup! $subject"
echo "new" >"$copy/build/linux/virt/kvm/new_file.c"
refused "new files in build/linux" export
g add virt/kvm/new_file.c
g commit -q -m "KVM: Add a file" -m "As a step of its own."
# A line of a Makefile names it, amid those of a step before.
makefile=$(g diff --name-only "refs/lab/$base/base" HEAD | grep '/Makefile[^/]*$' | head -n 1)
among=$(g diff "refs/lab/$base/base" HEAD -- "$makefile" | sed -n 's/^+\([^+].*\)/\1/p' | head -n 1)
line_after() {	# line_after LINE NEW: put it there
	awk -v line="$1" -v new="$2" '{ print } $0 == line && !done++ { print new }' \
		"$copy/build/linux/$makefile" >"$top/makefile"
	cp "$top/makefile" "$copy/build/linux/$makefile"
}
line_after "$among" "new-y += \$(KVM)/new_file.o"
is "an export of a fixup! commit, a new one and a line which names its file" run export
is "... squashes the one, and makes a step of the other" \
	changed "$data/seams/$step.patch" "$data/seams/KVM-Add-a-file.patch" "$data/series" virt/kvm/new_file.c
is "... which the tree" run tree DISCARD=1
is "... then has" changed "$data/seams/$step.patch" "$data/seams/KVM-Add-a-file.patch" "$data/series" virt/kvm/new_file.c
p reset -q --hard
p clean -q -f -d
is "back to where we were" run tree

# The last line that a step adds to a Makefile is moved to those of an earlier one.
makefile=$(grep -h '^diff --git a/.*/Makefile' "$data"/seams/*.patch | sed 's,.* b/,,' | sort | uniq -c | sort -rn | awk '{ print $2; exit }')
g blame -l -s "refs/lab/$base/base..HEAD" -- "$makefile" | grep -v '^\^' | sed 's/ *[0-9]*) /\t/' >"$top/blame"
set -- $(g rev-list --reverse "refs/lab/$base/base..HEAD" -- "$makefile")
among=$(awk -F'\t' -v c="$1" '$1 == c { print $2; exit }' "$top/blame")
for c; do :; done
moved=$(awk -F'\t' -v c="$c" '$1 == c { print $2; exit }' "$top/blame")
grep -vxF "$moved" "$copy/build/linux/$makefile" >"$top/makefile"
cp "$top/makefile" "$copy/build/linux/$makefile"
line_after "$among" "$moved"
is "an export of a line that has moved" run export
is "... leaves it in its step" changed "$data/seams/$(cd "$data/seams" && grep -lxF "Subject: $(g log -1 --format=%s "$c")" ./*.patch | sed 's,^\./,,')"
p reset -q --hard
is "back again" run tree DISCARD=1

# Another base: 9.9, with drifted context lines in all files.
cp -R "$top/linux" "$top/drifted"
sed -i 's/^VERSION = .*/VERSION = 9/; s/^PATCHLEVEL = .*/PATCHLEVEL = 9/; s/^SUBLEVEL = .*/SUBLEVEL = 0/' "$top/drifted/Makefile"
git -C $tree diff --no-renames --diff-filter=M "$refs/base" "$refs/composed" |
	awk -v dir="$top/drifted/" '
		function drift(  l, n) {
			if (file == "") return
			while ((getline l < file) > 0) {
				n++
				print (n in at) ? l " drifted" : l >(file ".new")
			}
			close(file); close(file ".new")
			print file
			split("", at)
		}
		/^--- a\// { drift(); file = dir substr($2, 3); next }
		/^@@/ { split($2, o, ","); first = -o[1]; context = 0; next }
		/^ / { if (++context == 3 && first > 1) at[first] }
		/^[-+]/ { context = -1000 }
		END { drift() }' >"$top/files"
while read -r f; do mv "$f.new" "$f"; done <"$top/files"
for f in $(cut -s -d' ' -f3- "$data/replaced.sha256" 2>/dev/null); do
	cp "$top/linux/$f" "$top/drifted/$f"
done
is "the next base has other lines in $(wc -l <"$top/files") files" \
	test "$(cd "$top" && diff -r linux drifted | grep -c '^> .* drifted$')" -gt 50
refused "which base?" rebase
is "make rebase resolves that by itself" run rebase TO=9.9 KERNEL_SRC="$top/drifted"
is "... and export writes it" run export BASE=9.9
is "... to a folder of its own" test -z "$(p status --porcelain -uall | grep -v ' bases/9\.9/' || :)"
is "... with the same lines of the series" test "$(lines "$base")" = "$(lines 9.9)"
save
is "back to $base" run tree
is "and forth" run tree BASE=9.9
is "... to what was exported" test -z "$(p status --porcelain)$(g status --porcelain -uno)"
echo "/* edit */" >>"$copy/build/linux/$own"
refused "has edits of base 9.9" tree
refused "build/linux is on 9.9, not on base $base" export
is "they are dropped on demand" run tree BASE=9.9 DISCARD=1
mkdir -p "$copy/bases/9.9/own/${own%/*}"
cp "$copy/$own" "$copy/bases/9.9/own/$own"
run tree BASE=9.9
save
echo "/* edit */" >>"$copy/build/linux/$own"
is "a base may have an own file of its own" run export BASE=9.9
is "... to which edits go" changed "bases/9.9/own/$own"
save

# A step that only the other base has, behind the first one.
cat >"$top/second" <<'EOF'
grep ^pick "$1" | awk '{ l[NR] = $0 } END { print l[1]; print l[NR]; for (i = 2; i < NR; i++) print l[i] }' >"$1.new"
mv "$1.new" "$1"
EOF
echo "# only there" >>"$copy/build/linux/Makefile"
g commit -q -a -m "kbuild: Add what only this base lacks"
GIT_EDITOR=: GIT_SEQUENCE_EDITOR="sh $top/second" g rebase -q -i refs/lab/9.9/base >"$top/out" 2>&1
is "a base may have a step of its own" run export BASE=9.9
is "... where it was committed" \
	test "$(grep -v '^[#[	]' "$copy/bases/9.9/series" | sed -n 2p)" = kbuild-Add-what-only-this-base-lacks
save

# A step is adapted there; then it changes, and is brought to the other base.
echo "# adapted" >>"$copy/build/linux/MAINTAINERS"
g commit -q -a -m "fixup! $(sed -n 's/^Subject: //p' "$copy/$maintainers")"
is "a base may adapt a step" run export BASE=9.9
is "... which is the one" changed "bases/9.9/seams/${maintainers##*/}"
save
is "back to $base again" run tree
sed -i "s,^$added,&y," "$copy/build/linux/MAINTAINERS"
refused "that are not exported" rebase TO=9.9
run export
save
is "a base is brought up to date" run rebase TO=9.9
run export BASE=9.9
is "... with the step that has changed, and the one of its own" \
	changed bases/9.9/carried "bases/9.9/seams/${maintainers##*/}"
is "... with what has changed in the one" grep -q "^+${added}y" "$copy/bases/9.9/seams/${maintainers##*/}"
is "... and what had been adapted" grep -qx '+# adapted' "$copy/bases/9.9/seams/${maintainers##*/}"
save
run tree
g reset -q --hard HEAD~1
is "a step is dropped" run export
is "... from $base" changed "$data/seams/$step.patch" "$data/series"
save
run rebase TO=9.9
run export BASE=9.9
is "... and from the other base" changed bases/9.9/carried bases/9.9/series "bases/9.9/seams/$step.patch"
save

# The next release of a base.
cp -R "$top/drifted" "$top/newer"
sed -i 's/^SUBLEVEL = .*/SUBLEVEL = 1/' "$top/newer/Makefile"
sed -i '1s/$/ newer/' "$top/newer/$several"
is "a base gets its next release" run rebase BASE=9.9 TO=9.9 KERNEL_SRC="$top/newer"
run export BASE=9.9
is "... and nothing else" changed bases/9.9/pin.mk $(p diff --name-only -- bases/9.9/seams)
is "... which the tree has" run tree BASE=9.9 DISCARD=1
is "... as its base" grep -q "on Linux 9.9.1" "$top/out"
save

# A base which conflicts.
cp -R "$top/linux" "$top/other"
sed -i 's/^VERSION = .*/VERSION = 9/; s/^PATCHLEVEL = .*/PATCHLEVEL = 8/; s/^SUBLEVEL = .*/SUBLEVEL = 1/' "$top/other/Makefile"
git -C $tree diff --no-renames "$refs/base" "$refs/composed" -- "$several" |
	sed -n '/^@@/,$s/^-\(.*[a-z].*\)/\1/p' | head -n 1 >"$top/line"
awk 'NR == FNR { line = $0; next } $0 == line && !done++ { $0 = $0 " /* other */" } { print }' \
	"$top/line" "$top/linux/$several" >"$top/other/$several"
is "back to $base once more" run tree
refused "conflict at" rebase TO=9.8 KERNEL_SRC="$top/other"
is "... in $several" grep -q "$several" "$top/out"
refused "a git rebase is going on" tree
refused "a git rebase is going on" export BASE=9.8
i=0
while [ -d "$copy/build/linux/.git/rebase-merge" ] && [ $((i = i + 1)) -lt 9 ]; do
	for f in $(g diff --name-only --diff-filter=U); do g checkout -q --theirs -- "$f"; done
	g add -u
	GIT_EDITOR=: g rebase --continue >"$top/out" 2>&1 || :
done
is "resolved and continued by hand" test $i -lt 9
is "... it is exported" run export BASE=9.8
is "... to a folder of its own" test -z "$(p status --porcelain -uall | grep -v ' bases/9\.8/' || :)"
is "... and composes" run tree BASE=9.8 DISCARD=1
is "both are there" test "$(run help; grep -c '9\.8.*9\.9' "$top/out")" = 1
echo "1..$n"
rm -rf "$top"
exit $bad
