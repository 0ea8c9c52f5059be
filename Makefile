# SPDX-License-Identifier: GPL-2.0
# The front door.  `make help` tells what there is; lab/ has the machinery.

MAKEFLAGS	+= --no-print-directory -rR
SHELL		:= /bin/bash
.ONESHELL:
.SHELLFLAGS	:= -euc
.SUFFIXES:

# What a user may set.  The base kernel: a folder of bases/.
BASE		?= 7.3
ARCH		?=
T		?=
LEVEL		?= full
FACTOR		?= 1
JOBS		?= $(shell nproc)
KERNEL_SRC	?=
TO		?=
SUITE		?=
FILE		?=
DISCARD		?=
FLAVOUR		?= cloud-amd64
DEBUG		?=
# Directory of the kernel configuration fragments.
CONFIG_DIR	?= lab/config

# What the shell gets of it is what the user wrote, also with a "$" in it.
export LAB_BASE		:= $(value BASE)
export LAB_OTHER_BASE	:= $(if $(filter file,$(origin BASE)),, BASE=$(value BASE))
export LAB_TO		:= $(value TO)
export LAB_ARCH		:= $(value ARCH)
export LAB_LEVEL	:= $(value LEVEL)
export LAB_FACTOR	:= $(value FACTOR)
export LAB_FILE		:= $(value FILE)
export LAB_FLAVOUR	:= $(value FLAVOUR)
export LAB_JOBS		:= $(JOBS)
export LAB_KERNEL_SRC	:= $(value KERNEL_SRC)

-include bases/$(BASE)/pin.mk

# A relative XDG_CACHE_HOME is to be ignored; who has no home has a build/.
cache		:= $(or $(if $(filter /%,$(XDG_CACHE_HOME)),$(XDG_CACHE_HOME)),\
			$(HOME:%=%/.cache),$(CURDIR)/build/cache)/guest_memfd-lab
tree		:= build/linux
tools		:= build/lab

# The two families have names of their own in the kernel.
arch_x86	:= x86_64
arch_x86-debug	:= x86_64
arch_x86-kcsan	:= x86_64
arch_arm64	:= arm64
arch_arm64-debug := arm64
cross_arm64	:= aarch64-linux-gnu-
cross_arm64-debug := aarch64-linux-gnu-
# KVM is a module of these.
image_x86	:= bzImage modules
image_x86-kcsan	:= bzImage modules
image_x86-debug	:= bzImage
image_arm64	:= Image
image_arm64-debug := Image
family_x86	:= x86
family_x86-debug := x86
family_x86-kcsan := x86
family_arm64	:= arm64
family_arm64-debug := arm64
# About how many steps a build from scratch has, for its progress line.
steps_x86	:= 2500
steps_arm64	:= 2300
frags_x86	:= common x86 walkers own
frags_x86-debug	:= common x86 own debug
frags_x86-kcsan	:= common x86 own kcsan
frags_arm64	:= common arm64 own
frags_arm64-debug := common arm64 own arm64-debug

# Debian's kernels, in build/deb/FLAVOUR.
deb		:= deb/$(FLAVOUR)
deb_arch	:= $(lastword $(subst -, ,$(FLAVOUR)))
arch_$(deb)	:= $(if $(filter arm64,$(deb_arch)),arm64,x86_64)
cross_$(deb)	:= $(if $(filter arm64,$(deb_arch)),aarch64-linux-gnu-)
frags_$(deb)	:= deb $(if $(filter arm64,$(deb_arch)),deb-arm64,deb-x86) $(if $(DEBUG),deb-debug,deb-plain)
steps_$(deb)	:= $(if $(filter cloud-%,$(FLAVOUR)),10600,46000)

# Objects are the same in every clone, so that clones share the cache.
export CCACHE_DIR	:= $(cache)/ccache
export CCACHE_BASEDIR	:= $(CURDIR)
export CCACHE_NOHASHDIR	:= 1
export CCACHE_COMPILERCHECK := content
export CCACHE_MAXSIZE	:= 12G
export KBUILD_BUILD_TIMESTAMP := 2026-01-01 00:00:00 UTC
export KBUILD_BUILD_USER := lab
export KBUILD_BUILD_HOST := guest_memfd
export KBUILD_BUILD_VERSION := 1
export KCPPFLAGS	:= -fmacro-prefix-map=../linux/=

# kbuild, FAMILY-OR-KERNEL: the kernel's make for build/KERNEL.
kbuild = env -u MAKEFLAGS -u MAKELEVEL make -C $(tree) O=$(CURDIR)/build/$(1) \
	ARCH=$(arch_$(1)) CROSS_COMPILE=$(cross_$(1)) CC="ccache $(cross_$(1))gcc" -j$(JOBS)
frags = $(foreach f,$(frags_$(1)),$(CONFIG_DIR)/$(f).config)

.PHONY: help
help:
	@cat <<'EOF'
	make check               build everything, boot it, run all tests
	make check LEVEL=quick   what takes minutes, on x86 and the host
	make check LEVEL=soak    hours: random seeds, fuzzing, x86-kcsan (data races), arm64-debug
	                         (arm64-protected with lockdep)
	make check ARCH=x86      ... of this platform: x86, x86-debug, x86-shadow, arm64,
	                         arm64-protected, host, x86-kcsan, arm64-debug; 'x86*' and
	                         'arm64*' are all of their kind
	make check T=NAME,...    ... of these names (lab/tests; shell patterns)
	make list                the tests that ARCH= and T= select
	make bench               base and ours side by side, in instructions (QUICK=1: what takes
	                         long on the base is measured on less; T=GROUP,...: only these)
	make bench ARCH=arm64    ... of protected VMs
	make demo [FILE=path]    a guest's private memory, shown with a file of yours
	make demo SECRET=1       ... memory that the host kernel cannot read, on demand
	make demo ARCH=arm64     ... with Linux in a protected VM under pKVM
	make shell [ARCH=x86]    boot the image of a platform to a command loop
	make gdb [ARCH=x86]      the same, halted, with a gdb port
	make tree                build/linux: base + seams + own files, one commit a step
	                         (DISCARD=1: drop edits made there)
	make export              bring edits and commits of build/linux back here
	make series              mailable patches in build/series, of you as author
	make series-check        build every step on both architectures (long; T=STEP,...: these;
	                         ARCH=x86 or arm64: on this one)
	make rebase TO=7.4       carry the series over to another base, or a newer release of
	                         this one (SUITE=s: Debian's suite that has it; or KERNEL_SRC=)
	make kernels             build the kernels and their tests, run nothing
	make deb                 Debian packages of the kernel in build/deb, by Debian's own
	                         configuration (FLAVOUR=f: cloud-amd64, amd64, cloud-arm64,
	                         arm64; DEBUG=1: with debug information and BTF)
	make clean               remove build/ (downloads and compiler cache stay)

	BASE=b         another base than $(BASE): $(sort $(patsubst bases/%/pin.mk,%,$(wildcard bases/*/pin.mk)))
	FACTOR=2       time-outs times two, for a slow machine
	KERNEL_SRC=p   a Linux $(BASE_VERSION) tree or tarball instead of Debian's package
	JOBS=n         compile jobs ($(JOBS))
	Logs: build/logs, of the previous run: build/logs.old
	EOF

# lock NAME: one at a time, also between two runs of make.
lock = mkdir -p build/lab build/logs; exec 8>build/lab/lock-$(1); flock -n 8 || { echo "lab: waiting for another make ($(1))"; flock 8; }

# ---- set-up ----

.PHONY: arguments packages compiler base tree
arguments:
	@lab/arguments.sh $(MAKECMDGOALS)

packages: arguments
	@lab/packages.sh

# All that the lab's own tools take.
compiler: arguments
	@lab/packages.sh gcc libc6-dev

base: packages
	@$(call lock,base)
	lab/base.sh "$$LAB_KERNEL_SRC" $(BASE_VERSION) lab/fetch.sh '$(cache)' $(BASE_PACKAGE) \
		'$(BASE_DEB)' $(BASE_SUITE) $(BASE_SHA256)

tree: base
	@$(call lock,tree)
	lab/tree.sh $(if $(DISCARD),discard)

$(tools)/runner: lab/machine.c lab/tests.c lab/machine.h lab/runner.h
$(tools)/bench: lab/chart.c lab/machine.c lab/report.c lab/rows.c lab/targets.c lab/bench.h \
	lab/chart.h lab/machine.h
$(tools)/%: lab/%.c | compiler
	@mkdir -p $(@D) build/logs
	gcc -O2 -Wall -Wextra -Wno-format-truncation -o $@ $(filter %.c,$^) -lm

# ---- kernels, test programs, boot images ----

.PHONY: kernel-% image-% kernels
kernel-%: tree
	@$(call lock,$*)
	mkdir -p build/$*
	lab/config.sh $(tree) build/$* $(arch_$*) $(call frags,$*)
	lab/progress.sh "kernel $*" build/logs/build-$*.log $(steps_$(family_$*)) \
		$(call kbuild,$*) $(image_$*)

.PHONY: tests-x86 tests-arm64
tests-x86 tests-arm64: tests-%: tree $(tools)/runner
	@$(call lock,tests-$*)
	lab/selftests.sh $* "$(cross_$*)" $(JOBS)

image-x86 image-x86-debug image-x86-kcsan image-arm64 image-arm64-debug: image-%: kernel-%
	@$(MAKE) -s tests-$(family_$*)
	lab/image.sh $* build/$(family_$*) "$(cross_$*)"

kernels: image-x86 image-x86-debug image-arm64

# ---- judging ----

.PHONY: check list lab-build-warnings lab-tree-roundtrip lab-content-table \
	lab-documents lab-htmldocs lab-front-door lab-qemu-client lab-rebase lab-series \
	lab-series-check
check: tree $(tools)/runner
	@$(tools)/runner -a '$(ARCH)' -t '$(T)' -L '$(LEVEL)' -f '$(FACTOR)'

list: $(tools)/runner
	@$(tools)/runner -a '$(ARCH)' -t '$(T)' -L '$(LEVEL)' -l

lab-build-warnings: kernel-x86 kernel-arm64
	@$(call lock,x86)
	lab/warnings.sh build/x86 arch/x86/kvm/ '$(call kbuild,x86)'
	$(call lock,arm64)
	lab/warnings.sh build/arm64 arch/arm64/kvm/ '$(call kbuild,arm64)'

# Each base is fetched, as long as Debian has it, and composed; the working tree of
# build/linux stays.
lab-tree-roundtrip: base
	@for b in $(patsubst bases/%/pin.mk,%,$(wildcard bases/*/pin.mk)); do
		[ $$b = $(BASE) ] || $(MAKE) -s base BASE=$$b KERNEL_SRC= || :
	done
	lab/roundtrip.sh

lab-rebase: tree
	@lab/rebase-test.sh

lab-series: tree
	@lab/series-test.sh

# ARCH= and T= are those of "make check".
lab-series-check: tree
	@LAB_ARCH= lab/series-check.sh $(JOBS)

lab-content-table:
	@lab/content-table.sh

lab-documents:
	@lab/documents.sh

lab-htmldocs: tree
	@lab/packages.sh python3-sphinx python3-yaml
	$(call lock,htmldocs)
	lab/htmldocs.sh

lab-front-door:
	@lab/front-door.sh

lab-qemu-client: image-x86
	@$(call lock,qemu)
	lab/qemu.sh

# ---- measuring ----

# The base, unpatched, to compare with; configured as ours.
.PHONY: kernel-base-x86 kernel-base-arm64 bench
kernel-base-x86 kernel-base-arm64: kernel-base-%: tree
	@$(call lock,base-$*)
	lab/base-tree.sh
	mkdir -p build/base/$*
	lab/config.sh build/base/linux build/base/$* $(arch_$*) $(call frags,$*)
	lab/progress.sh "kernel base $*" build/logs/build-base-$*.log $(steps_$*) \
		env -u MAKEFLAGS -u MAKELEVEL make -C build/base/linux O=$(CURDIR)/build/base/$* \
		ARCH=$(arch_$*) CROSS_COMPILE=$(cross_$*) CC="ccache $(cross_$*)gcc" -j$(JOBS) $(image_$*)

bench_machine := $(if $(filter arm64%,$(ARCH)),arm64,x86)
bench: image-$(bench_machine) kernel-base-$(bench_machine) $(tools)/bench
	@lab/image.sh base/$(bench_machine) build/$(bench_machine) '$(cross_$(bench_machine))'
	$(tools)/bench -m $(bench_machine) $(if $(QUICK),-q) $(if $(T),-o '$(T)')

# ---- packages ----

.PHONY: deb deb-packages deb-config deb-config-test lab-deb-config lab-deb-boot
deb-packages: arguments
	@lab/packages.sh debhelper dpkg-dev python3 zstd $(if $(DEBUG),pahole)

deb-config: tree
	@$(call lock,deb-$(FLAVOUR))
	lab/debian-config.sh $(FLAVOUR) build/$(deb)/.config.debian lab/fetch.sh '$(cache)' \
		'$(BASE_PACKAGE:linux-source-%=linux-config-%)' '$(BASE_DEB)' '$(BASE_SUITE)' '' $(deb_arch)
	CROSS_COMPILE=$(cross_$(deb)) lab/config.sh -b build/$(deb)/.config.debian \
		$(tree) build/$(deb) $(arch_$(deb)) $(call frags,$(deb))

deb: deb-packages deb-config
	@$(call lock,deb-$(FLAVOUR))
	lab/deb.sh $(FLAVOUR) $(deb_arch) $(BASE_VERSION) '$(DEBUG)' $(steps_$(deb)) $(call kbuild,$(deb))

lab-deb-config:
	@$(MAKE) -s deb-config-test FLAVOUR=cloud-amd64 DEBUG=

deb-config-test: deb-config
	@lab/packages.sh python3
	$(call lock,deb-config-test)
	lab/deb-config-test.sh $(call frags,$(deb))

lab-deb-boot:
	@[ $(deb_arch) = amd64 ] || { echo "not ok 1 only kernels of amd64 are booted"; exit 1; }
	lab/packages.sh mmdebstrap genext2fs
	$(MAKE) -s deb tests-x86
	$(call lock,deb-boot)
	lab/deb-boot.sh $(BASE_SUITE:%-backports=%) $(BASE_VERSION)-gmem-$(FLAVOUR) \
		build/deb/linux-image-$(BASE_VERSION)-gmem-$(FLAVOUR)_$(BASE_VERSION)-1_$(deb_arch).deb

# ---- hacking ----

.PHONY: export rebase series series-check shell gdb demo clean
export: base
	@$(call lock,tree)
	lab/export.sh .
	lab/adopt.sh

# KERNEL_SRC is of the new base.
rebase: arguments
	@$(MAKE) -s tree TO= KERNEL_SRC=
	$(call lock,tree)
	lab/pin.sh '$(cache)' '$(SUITE)'
	$(MAKE) -s base BASE="$$LAB_TO" TO=
	lab/rebase.sh

series: tree
	@lab/series.sh build/series

series-check: tree
	@lab/series-check.sh $(JOBS) '$(T)'

boot_arch := $(or $(ARCH),x86)
boot_kernel := $(or $(filter x86-debug x86-kcsan arm64-debug,$(boot_arch)),$(if $(filter arm64%,$(boot_arch)),arm64,x86))
shell: image-$(boot_kernel) $(tools)/runner
	@exec $(tools)/runner -a $(boot_arch) -s lab.shell
gdb: image-$(boot_kernel) $(tools)/runner
	@exec $(tools)/runner -a $(boot_arch) -s lab.shell -g

demo_arch := $(if $(filter arm64%,$(boot_arch)),arm64,x86)
demo: arguments
	@$(if $(SECRET),[ $(demo_arch) = x86 ] || { echo "lab: SECRET=1 is a demo of ARCH=x86" >&2; exit 1; })
	@[ -z "$$LAB_FILE" ] || lab/demo-file.sh "$$LAB_FILE"
	$(MAKE) -s image-$(demo_arch) $(tools)/runner
	lab/demo.sh $(demo_arch) "$${LAB_FILE:-$(tree)/MAINTAINERS}" $(if $(SECRET),secret)

clean:
	@rm -rf build
