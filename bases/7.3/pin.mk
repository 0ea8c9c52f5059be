# SPDX-License-Identifier: GPL-2.0
# The base kernel: a Debian source package, pinned.
BASE_VERSION	:= 7.3.4
BASE_PACKAGE	:= linux-source-7.3
BASE_DEB	:= 7.3.4-1~bpo13+1
BASE_SUITE	:= trixie-backports
BASE_SHA256	:= 703e369ddd4cce971452f5a593ee55df3a5c10c83caf0fa0df039633ed181ee3
