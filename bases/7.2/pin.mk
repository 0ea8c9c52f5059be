# SPDX-License-Identifier: GPL-2.0
# The base kernel: a Debian source package, pinned.
BASE_VERSION	:= 7.2.13
BASE_PACKAGE	:= linux-source-7.2
BASE_DEB	:= 7.2.13-1
BASE_SUITE	:= unstable
BASE_SHA256	:= 30a8c5fc63f9028a62e6d7b3f7f43bee67425dbce2a05fceba83f9b87c92083d
