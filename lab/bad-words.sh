#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# bad-words.sh LOG...: print what a kernel must not say.  Exit status 0 if it has.
words=$(sed -n '/bad_words\[\] = {/,/^};/p' lab/init.c | grep -o '"[^"]*"' | tr -d '"')
[ "$words" ] || { echo "no bad_words in lab/init.c"; exit 0; }
printf '%s\n' "$words" | grep -F -f - "$@"
