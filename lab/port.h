/* SPDX-License-Identifier: GPL-2.0 */
/* The verdict port of a booted machine, for those who drive one. */
#ifndef LAB_PORT_H
#define LAB_PORT_H

#include <stdbool.h>
#include <stddef.h>

/* Where QEMU has its end of the socket pair, see "-chardev socket,fd=". */
#define VERDICT_FD	9

struct port {
	int	fd;
	size_t	len;
	char	buf[8192];
};

void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
long long now_ms(void);
char *port_line(struct port *port, char *line, size_t size, long long deadline,
		bool *died);

#endif
