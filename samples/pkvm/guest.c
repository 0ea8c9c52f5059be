// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's /init: prints the SHA-256 of its disk, and powers off.
 *
 * DISK_LENGTH in the environment (from the kernel command line) is the number
 * of bytes that count, as a disk has whole sectors only.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include "../guest_memfd/sha256.h"

static void print_digest(const char *path, size_t length)
{
	__u8 digest[SHA256_SIZE];
	int fd = open(path, O_RDONLY);
	void *at;
	int i;

	/* Through the page cache: private memory, of any size. */
	at = fd < 0 ? MAP_FAILED : mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED) {
		perror(path);
		return;
	}
	sha256(at, length, digest);
	printf("sha256 ");
	for (i = 0; i < SHA256_SIZE; i++)
		printf("%02x", digest[i]);
	printf("\n");
}

static void read_random(void)
{
	int fd = open("/dev/hwrng", O_RDONLY);
	__u64 value;

	if (fd < 0 || read(fd, &value, sizeof(value)) != sizeof(value))
		perror("/dev/hwrng");
	else
		printf("a number from the hardware: %016llx\n", value);
}

int main(void)
{
	const char *length = getenv("DISK_LENGTH");
	struct utsname uts;
	struct sysinfo si;

	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	uname(&uts);
	sysinfo(&si);
	printf("init is up: Linux %s, %d CPUs, %lu MiB\n", uts.release, get_nprocs(),
	       si.totalram * si.mem_unit >> 20);
	if (length) {
		print_digest("/dev/vda", strtoul(length, NULL, 10));
		read_random();
	}
	/* The console must have sent all. */
	fflush(stdout);
	tcdrain(1);
	reboot(RB_POWER_OFF);
	perror("power-off");
	return 1;
}
