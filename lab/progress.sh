#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# progress.sh LABEL LOG STEPS COMMAND...: run a build, keep all it says in LOG, and tell
# how far it is, every second on a terminal, else every 15.  STEPS: about how many there
# are if LOG tells of no build before, 0 if nobody knows.  Exit status: 1 if it failed;
# then the lines that look like errors are shown.
set -u
label=$1 log=$2 steps=$3
shift 3
# A line of kbuild, two blanks and a word in capitals, or a compiler's command line.
step='^  [A-Z][A-Z]|^ccache |^gcc '
[ ! -s "$log" ] || steps=0
start=$(date +%s)
every=15 line='%s\n' end=
[ ! -t 1 ] || every=1 line='\r\033[K%s' end='\r\033[K'

seconds() { echo $(($(date +%s) - start)); }

far() {
	n=$(grep -cE "$step" "$log") s=$(seconds) left=
	[ "$n" -lt 100 ] || left=$((s * (steps - n) / n / 60))
	[ "${left:-0}" -gt 0 ] && left=", $left min to go" || left=
	[ "$steps" -gt "$n" ] && of=" of about $steps" || of=
	echo "$n$of steps, ${s}s$left"
}

: >"$log" || exit 2
# It ends with this shell, however that ends, and keeps neither the lock of the Makefile
# (8) nor a pipe of whoever reads this.
while sleep $every >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
	# shellcheck disable=SC2059
	printf "$line" "$label: $(far)"
done 8>&- &
teller=$!
trap 'kill $teller 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM
"$@" >"$log" 2>&1
status=$?
kill $teller
wait $teller 2>/dev/null
# shellcheck disable=SC2059
printf "$end"
if [ $status -ne 0 ]; then
	echo "$label: failed, log $log"
	grep -vE "$step" "$log" | grep -E 'rror|undefined reference|warning:|No rule to make' | head -n 20 | sed 's/^/  /'
	exit 1
fi
grep -qE "$step" "$log" && what=built || what="up to date"
echo "$label: $what ($(seconds)s)"
