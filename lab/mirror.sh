#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# mirror.sh: print the address of the mirror that this machine's apt uses for Debian.
. /etc/os-release
apt-get indextargets --format '$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI)' 2>/dev/null |
	awk -v c="${VERSION_CODENAME:-}" '$1 == "Packages" && $2 == c && $3 == "main" { print $4; exit }'
