// SPDX-License-Identifier: GPL-2.0-only
/*
 * The devices at fixed addresses: finds the one that an access is for.  Has the
 * console itself, a PL011 that only sends.
 */
#include <string.h>

#include "vmm.h"

/* Registers and bits that matter; the rest is remembered, and means nothing. */
#define UART_DR		0x00
#define UART_FR		0x18
#define UART_IMSC	0x38
#define UART_RIS	0x3c
#define UART_MIS	0x40
#define UART_ICR	0x44
#define UART_ID		0xfe0

#define FR_TXFE		BIT(7)	/* nothing left to send */
#define FR_RXFE		BIT(4)	/* nothing received */
#define INT_TX		BIT(5)

static struct {
	__u32 regs[0x50 / 4];
	__u32 imsc, ris;
	char line[512];
	size_t length;
	bool level;
} uart;

static void put_char(struct vm *vm, char c)
{
	if (c == '\r')
		return;
	if (c != '\n')
		uart.line[uart.length++] = c;
	if (c == '\n' || uart.length == sizeof(uart.line) - 1) {
		uart.line[uart.length] = '\0';
		uart.length = 0;
		guest_says(vm, uart.line);
	}
}

static __u32 uart_read(unsigned int offset)
{
	static const __u8 id[] = { 0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1 };

	switch (offset) {
	case UART_FR:
		return FR_TXFE | FR_RXFE;
	case UART_IMSC:
		return uart.imsc;
	case UART_RIS:
		return uart.ris;
	case UART_MIS:
		return uart.ris & uart.imsc;
	}
	if (offset >= UART_ID)
		return id[(offset - UART_ID) / 4];
	return offset < sizeof(uart.regs) ? uart.regs[offset / 4] : 0;
}

static void update_uart_irq(struct vm *vm)
{
	bool level = uart.ris & uart.imsc;

	if (level != uart.level)
		set_irq(vm, UART_SPI, level);
	uart.level = level;
}

/* A character is gone at once, and the interrupt asks for the next. */
static void uart_write(struct vm *vm, unsigned int offset, __u32 value)
{
	switch (offset) {
	case UART_DR:
		put_char(vm, value);
		uart.ris |= INT_TX;
		break;
	case UART_IMSC:
		uart.imsc = value;
		break;
	case UART_ICR:
		uart.ris &= ~value;
		break;
	default:
		if (offset < sizeof(uart.regs))
			uart.regs[offset / 4] = value;
	}
	update_uart_irq(vm);
}

/* One access; where nothing is, reads give zeros and writes go nowhere. */
void do_mmio(struct vm *vm, __u64 addr, __u32 size, void *data, bool write)
{
	unsigned int offset = addr % MMIO_SIZE, i;
	__u32 value = 0;

	if (size > sizeof(value)) {
		if (!write)
			memset(data, 0, size);
		return;
	}
	if (write)
		memcpy(&value, data, size);
	if (addr - offset == UART_BASE && write)
		uart_write(vm, offset, value);
	else if (addr - offset == UART_BASE)
		value = uart_read(offset & ~3u);

	i = (addr - VIRTIO_BASE) / MMIO_SIZE;
	if (addr >= VIRTIO_BASE && addr - VIRTIO_BASE < vm->nr_devices * MMIO_SIZE)
		value = virtio_access(vm, vm->devices[i], offset, value, size, write);
	if (!write)
		memcpy(data, &value, size);
}
