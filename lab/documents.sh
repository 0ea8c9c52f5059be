#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# documents.sh: what guest_memfd.rst, guest_memfd-internals.rst and the project's
# own pages say in tables and names, as far as it can be looked up in the code.  The
# content flags have a check of their own, content-table.sh.  Prints KTAP.
set -eu
users=Documentation/virt/kvm/guest_memfd.rst
devel=Documentation/virt/kvm/guest_memfd-internals.rst
ops=include/linux/kvm_gmem.h
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n=0 bad=0

# result TEXT: ok if $tmp/wrong is empty.
result() {
	n=$((n + 1))
	[ -s "$tmp/wrong" ] || { echo "ok $n $1"; return; }
	bad=1
	sed 's/^/# /' "$tmp/wrong"
	echo "not ok $n $1"
}

# missing IN: of the lines of stdin, those that IN doesn't have as words.
missing() {
	while read -r word; do
		grep -qwF -e "$word" "$1" || echo "$word"
	done
}

# doc_section FILE TITLE: a DOC: comment.
doc_section() {
	awk -v want=" * DOC: $2" '$0 == want { on = 1; next } on && /^ \*\// { exit } on' "$1"
}

# Own code, without tests and the models of platforms.
code() { find virt arch include/linux -name '*.[ch]' | grep -Ev '_test\.c|_model\.|_kunit\.h' | sort; }

# The table of a VM type: its lines.
table() { sed -n "/struct kvm_gmem_ops $1 = {/,/^};/p" $(code); }

# hook_is_set TABLE HOOK
hook_is_set() {
	if [ "$2" = free_folio ]; then
		aops=$(table "$1" | sed -n 's/.*\.aops[ \t]*= &\([a-z_]*\),.*/\1/p')
		free=$(cat $(code) | tr -d '\n' | grep -oE "$aops =[ 	]*KVM_GMEM_AOPS\([A-Za-z_]*\)" | sed 's/.*(\(.*\))/\1/')
		[ "$free" != NULL ]
	else
		table "$1" | grep -qE "\.$2[ 	]*="
	fi
}

# cell ROW COLUMN: the first line of a cell in the table of hooks by VM type.
cell() {
	awk -v row="$1" -v want="$2" '
	/^=+ / { for (n = at = 0; match(substr($0, at + 1), /=+/); at = to[n])
			{ from[++n] = at + RSTART; to[n] = at + RSTART + RLENGTH - 1 } }
	$1 == row && n { print substr($0, from[want], want == n ? 99 : to[want] - from[want] + 1); exit }
	' "$tmp/by-type"
}

# rows FILE: first column of all simple tables' rows.
rows() { awk '/^=+ +=/ { on = !on || !body; body = 0; next } on { body = 1 } on && /^[A-Za-z]/ { print $1 }' "$1"; }

echo "KTAP version 1"

# What is included exists, and all that could be is.
sed -n 's/^\.\. kernel-doc:: //p; s/^   :doc: /	/p' $devel | awk '/^\t/ { print file $0; next } { file = $0 }' | sort >"$tmp/included"
grep -H '^ \* DOC: ' $(code) | sed 's/: \* DOC: /	/' | sort >"$tmp/have"
diff "$tmp/included" "$tmp/have" >"$tmp/wrong" || :
result "each DOC: section of the code is in the document, and there"

# Hooks.
sed -n '/^struct kvm_gmem_ops {/,/^};/p' $ops | grep -oE '\(\*[a-z_]+\)' | tr -d '(*)' | grep -vx content >"$tmp/hooks"
echo free_folio >>"$tmp/hooks"
doc_section $ops "Hooks by event" >"$tmp/by-event"
missing "$tmp/by-event" <"$tmp/hooks" >"$tmp/wrong"
result "each hook is in the table of hooks by event"
sed -n '/^Hooks by VM type/,/^Platforms/p' $devel >"$tmp/by-type"
while read -r hook; do
	column=1
	for tables in "kvm_gmem_default_ops sw_protected_gmem_ops sev_gmem_sev_ops sev_gmem_default_ops" \
		snp_gmem_ops tdx_gmem_ops pkvm_gmem_ops; do
		column=$((column + 1)) set=
		for t in $tables; do
			! hook_is_set $t "$hook" || set=yes
		done
		case $(cell "$hook" $column) in
		none*) said= ;;
		?*) said=yes ;;
		*) said=nothing ;;
		esac
		[ "$set" = "$said" ] || echo "$hook: $tables: code ${set:-no}, document ${said:-no}"
	done
done <"$tmp/hooks" >"$tmp/wrong"
result "the table of hooks by VM type is that of the code"

# Creation flags.
flags() {	# flags TABLE...: of each, by name
	table "$1" | tr -d '\n' | sed 's/KVM_GMEM_\(HUGE\|NO_DIRECT_MAP\)_FLAG/GUEST_MEMFD_FLAG_\1/g; s/.*\.create_flags[^=]*=//; s/,.*//' |
		grep -oE 'GUEST_MEMFD_FLAG_[A-Z_]+' | sed s/GUEST_MEMFD_FLAG_//
	! table "$1" | grep -q '\.attributes' || echo SHARED_CONTROL
	sed -n 's/^	u64 flags = ops->create_flags | GUEST_MEMFD_FLAG_//p' virt/kvm/guest_memfd.c | tr -d ';'
}
while read -r type t; do
	flags "$t" | sort >"$tmp/want"
	sed -n '/^VM type  *KVM_CREATE_GUEST_MEMFD accepts/,/^$/p' $users | grep "^$type" |
		grep -oE '[A-Z_]+(, [A-Z_]+)*$' | tr -d ' ' | tr , '\n' | sort >"$tmp/got"
	diff "$tmp/got" "$tmp/want" | sed "s/^/$type: /" || :
done >"$tmp/wrong" <<EOF
KVM_X86_SW_PROTECTED_VM sw_protected_gmem_ops
KVM_X86_SNP_VM snp_gmem_ops
KVM_X86_TDX_VM tdx_gmem_ops
KVM_VM_TYPE_ARM_PROTECTED pkvm_gmem_ops
all kvm_gmem_default_ops
KVM_X86_SEV sev_gmem_sev_ops
all sev_gmem_default_ops
EOF
result "the table of creation flags is that of the code"

# Interfaces and locks.
for d in $(cut -f1 "$tmp/included" | sort -u); do grep '^ \*' "$d"; done >"$tmp/text"
cat $devel >>"$tmp/text"
sed -n '/define KVM_GMEM_AOPS/,/}/p' $ops >>"$tmp/text"
grep -oE '\bkvm_(arch_)?gmem_[a-z_]+\(' $ops | tr -d '(' | sort -u | missing "$tmp/text" >"$tmp/wrong"
result "each function of kvm_gmem.h is in the document"
doc_section virt/kvm/gmem_internal.h Locking >"$tmp/locking"
grep -hoE 'lockdep_assert_held[a-z_]*\([^;]*;' $(code) | sed 's/);$//; s/.*[>.]//' | sort -u |
	missing "$tmp/locking" >"$tmp/wrong"
result "each lock that the code asserts is in the order of locks"

# Files and tests.
rows $devel | grep / | grep -v '_test\.c$\|_bench\.c$' | while read -r f; do [ -e "$f" ] || echo "$f isn't there"; done >"$tmp/wrong"
{ ls virt/kvm/*.[ch]; find arch -name '*gmem*.c' -o -name '*_platform.h'; } | grep -Ev '_test\.c|_model\.' |
	missing $devel | sed 's/$/ is in no table/' >>"$tmp/wrong"
result "the table of files is that of the tree"
{ find tools/testing/selftests/kvm -name '*_test.c' -o -name '*_bench.c' | sed 's,tools/testing/selftests/kvm/,,'
grep -hA1 'static struct kunit_suite' $(find virt arch -name '*_test.c') | sed -n 's/.*\.name = "\(.*\)".*/\1/p'; } |
	missing $devel >"$tmp/wrong"
result "each test is in a table"

# Statistics and tracepoints.
{ grep -rhoE '^\+.*STATS_DESC_[A-Z]+\(VM_GENERIC, gmem_[a-z_]+' bases | sed 's/.*, //'
sed -n 's/^TRACE_EVENT(\(.*\),/kvm:\1/p' virt/kvm/gmem_trace.h; } | sort -u >"$tmp/want"
sed -n '/^Statistics and tracepoints/,/^What is not there/p' $users | grep -oE '^(gmem_|kvm:)[a-z_]+' | sort -u >"$tmp/got"
diff "$tmp/got" "$tmp/want" >"$tmp/wrong" || :
result "statistics and tracepoints are those of the code"

# The project's own pages.
for page in *.md */*.md; do
	[ -e "$page" ] || continue
	grep -oE '\]\([^)#]+' "$page" | cut -c3- | grep -v : | while read -r to; do
		[ -e "$(dirname "$page")/$to" ] || echo "$page: $to isn't there"
	done
done >"$tmp/wrong"
result "the links of the project's pages lead somewhere"
echo "1..$n"
exit $bad
