// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device tree, written front to back with libfdt's sequential functions.
 *
 * What a protected guest needs beyond the usual: its devices have a
 * memory-region of type "restricted-dma-pool".  Linux shares the pages of that
 * pool with the host, and keeps rings and bounce buffers of the devices there.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <libfdt.h>

#include "vmm.h"

#define PHANDLE_GIC	1
#define PHANDLE_CLOCK	2
#define PHANDLE_POOL	3

#define GIC_SPI		0
#define GIC_PPI		1
#define LEVEL_HIGH	4

/* Every failure here is a tree that has no room. */
static void ok(int ret)
{
	if (ret)
		errx(1, "device tree: %s", fdt_strerror(ret));
}

static void begin(void *fdt, const char *name)
{
	ok(fdt_begin_node(fdt, name));
}

static void end(void *fdt)
{
	ok(fdt_end_node(fdt));
}

static void text(void *fdt, const char *name, const char *value)
{
	ok(fdt_property_string(fdt, name, value));
}

static void flag(void *fdt, const char *name)
{
	ok(fdt_property(fdt, name, NULL, 0));
}

static void cells(void *fdt, const char *name, int n, ...)
{
	fdt32_t buf[16];
	va_list args;
	int i;

	va_start(args, n);
	for (i = 0; i < n; i++)
		buf[i] = cpu_to_fdt32(va_arg(args, __u32));
	va_end(args);
	ok(fdt_property(fdt, name, buf, n * sizeof(buf[0])));
}

/* One range, in two cells for the address and two for the size. */
static void reg(void *fdt, __u64 base, __u64 size)
{
	cells(fdt, "reg", 4, (__u32)(base >> 32), (__u32)base, (__u32)(size >> 32), (__u32)size);
}

static void write_chosen(const struct vm *vm, void *fdt)
{
	__u8 seed[64];

	begin(fdt, "chosen");
	text(fdt, "bootargs", vm->cmdline);
	text(fdt, "stdout-path", "/serial");
	ok(fdt_property_u64(fdt, "linux,initrd-start", vm->layout.initrd));
	ok(fdt_property_u64(fdt, "linux,initrd-end", vm->layout.initrd_end));
	/* Mixed in, not relied on: a protected guest does not trust its host. */
	if (getrandom(seed, sizeof(seed), 0) == sizeof(seed))
		ok(fdt_property(fdt, "rng-seed", seed, sizeof(seed)));
	end(fdt);
}

static void write_memory(const struct vm *vm, void *fdt)
{
	begin(fdt, "memory");
	text(fdt, "device_type", "memory");
	reg(fdt, RAM_BASE, vm->ram_size);
	end(fdt);

	begin(fdt, "reserved-memory");
	cells(fdt, "#address-cells", 1, 2);
	cells(fdt, "#size-cells", 1, 2);
	flag(fdt, "ranges");
	begin(fdt, "dma-pool");
	text(fdt, "compatible", "restricted-dma-pool");
	reg(fdt, vm->layout.pool, vm->layout.pool_size);
	cells(fdt, "phandle", 1, PHANDLE_POOL);
	end(fdt);
	end(fdt);
}

static void write_cpus(const struct vm *vm, void *fdt)
{
	static const char psci[] = "arm,psci-1.0\0arm,psci-0.2";
	unsigned int i;
	char name[16];

	begin(fdt, "cpus");
	cells(fdt, "#address-cells", 1, 1);
	cells(fdt, "#size-cells", 1, 0);
	for (i = 0; i < vm->nr_cpus; i++) {
		snprintf(name, sizeof(name), "cpu@%x", i);
		begin(fdt, name);
		text(fdt, "device_type", "cpu");
		text(fdt, "compatible", "arm,armv8");
		text(fdt, "enable-method", "psci");
		cells(fdt, "reg", 1, i);
		end(fdt);
	}
	end(fdt);

	begin(fdt, "psci");
	ok(fdt_property(fdt, "compatible", psci, sizeof(psci)));
	text(fdt, "method", "hvc");
	end(fdt);
}

/* Interrupt controller and timer: emulated by KVM. */
static void write_kvm_devices(const struct vm *vm, void *fdt)
{
	begin(fdt, "interrupt-controller");
	text(fdt, "compatible", "arm,gic-v3");
	cells(fdt, "#interrupt-cells", 1, 3);
	flag(fdt, "interrupt-controller");
	cells(fdt, "reg", 8, 0, (__u32)GICD_BASE, 0, (__u32)GICD_SIZE,
	      0, (__u32)GICR_BASE, 0, (__u32)(GICR_SIZE * vm->nr_cpus));
	cells(fdt, "phandle", 1, PHANDLE_GIC);
	end(fdt);

	/* Secure, non-secure, virtual, hypervisor. */
	begin(fdt, "timer");
	text(fdt, "compatible", "arm,armv8-timer");
	cells(fdt, "interrupts", 12, GIC_PPI, 13, LEVEL_HIGH, GIC_PPI, 14, LEVEL_HIGH,
	      GIC_PPI, 11, LEVEL_HIGH, GIC_PPI, 10, LEVEL_HIGH);
	flag(fdt, "always-on");
	end(fdt);
}

static void write_serial(void *fdt)
{
	static const char compatible[] = "arm,pl011\0arm,primecell";
	static const char clocks[] = "uartclk\0apb_pclk";

	begin(fdt, "clock");
	text(fdt, "compatible", "fixed-clock");
	cells(fdt, "#clock-cells", 1, 0);
	cells(fdt, "clock-frequency", 1, 24000000);
	cells(fdt, "phandle", 1, PHANDLE_CLOCK);
	end(fdt);

	begin(fdt, "serial");
	ok(fdt_property(fdt, "compatible", compatible, sizeof(compatible)));
	reg(fdt, UART_BASE, MMIO_SIZE);
	cells(fdt, "interrupts", 3, GIC_SPI, UART_SPI, LEVEL_HIGH);
	cells(fdt, "clocks", 2, PHANDLE_CLOCK, PHANDLE_CLOCK);
	ok(fdt_property(fdt, "clock-names", clocks, sizeof(clocks)));
	end(fdt);
}

static void write_virtio(const struct vm *vm, void *fdt)
{
	unsigned int i;
	char name[32];

	for (i = 0; i < vm->nr_devices; i++) {
		__u64 base = VIRTIO_BASE + i * MMIO_SIZE;

		snprintf(name, sizeof(name), "virtio@%llx", base);
		begin(fdt, name);
		text(fdt, "compatible", "virtio,mmio");
		reg(fdt, base, MMIO_SIZE);
		cells(fdt, "interrupts", 3, GIC_SPI, VIRTIO_SPI + i, LEVEL_HIGH);
		flag(fdt, "dma-coherent");
		if (vm->mode != MODE_NORMAL)
			cells(fdt, "memory-region", 1, PHANDLE_POOL);
		end(fdt);
	}
}

void build_devtree(const struct vm *vm, void *fdt, size_t room)
{
	ok(fdt_create(fdt, room));
	ok(fdt_finish_reservemap(fdt));
	begin(fdt, "");
	text(fdt, "compatible", "linux,dummy-virt");
	cells(fdt, "#address-cells", 1, 2);
	cells(fdt, "#size-cells", 1, 2);
	cells(fdt, "interrupt-parent", 1, PHANDLE_GIC);
	write_chosen(vm, fdt);
	write_memory(vm, fdt);
	write_cpus(vm, fdt);
	write_kvm_devices(vm, fdt);
	write_serial(fdt);
	write_virtio(vm, fdt);
	end(fdt);
	ok(fdt_finish(fdt));
}
