// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the VM that a VMM runs: use some memory, say so, go.  With the argument
 * "convert" it has the memory, and once all of RAM, made private and shared again:
 * it asks preload.c by a line on the console, which is obeyed when tcdrain() returns.
 */
#include <fcntl.h>
#include <linux/types.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

#define PIECE		0x200000UL	/* a huge page of the kernel's, which stays put */
#define PIECES		4
#define SIZE		(PIECES * PIECE)

static unsigned char *mem;
static int pagemap, requests, seed;
static long bad;

static unsigned char byte(unsigned long i)
{
	return (i * 31 >> 3) + seed;
}

static void fill(void)
{
	unsigned long i;

	seed++;
	for (i = 0; i < SIZE; i++)
		mem[i] = byte(i);
}

static void check(void)
{
	unsigned long i;

	for (i = 0; i < SIZE; i++)
		bad += mem[i] != byte(i);
}

static void ask(const char *what, unsigned long gpa, unsigned long size)
{
	printf("vmm: %s 0x%lx 0x%lx\n", what, gpa, size);
	fflush(stdout);
	tcdrain(1);
	requests++;
}

static void ask_for(const char *what, unsigned long offset, unsigned long size)
{
	__u64 entry = 0;
	off_t at = ((unsigned long)mem + offset) / 4096 * sizeof(entry);

	if (pread(pagemap, &entry, sizeof(entry), at) != sizeof(entry) || !(entry << 9)) {
		printf("guest: no address in pagemap\n");
		bad++;
		return;
	}
	ask(what, (entry << 9 >> 9) * 4096, size);
}

static void convert(void)
{
	unsigned long i;

	for (i = 0; i < SIZE; i += PIECE)
		ask_for("private", i, PIECE);
	check();
	fill();
	/* Large mappings are split by this. */
	ask_for("shared", PIECE + 4096, 4096);
	check();
	for (i = 0; i < SIZE; i += PIECE)
		ask_for("shared", i, PIECE);
	check();
	ask("cycle", 0, 0);
	check();
	fill();
	check();
}

int main(int argc, char **argv)
{
	struct utsname name;

	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED) {
		printf("guest: no memory\n");
		goto out;
	}
	fill();
	check();
	if (argc > 1 && !strcmp(argv[1], "convert"))
		convert();

	uname(&name);
	printf("guest: Linux %s: %ld bytes are wrong, %d requests\n", name.release, bad,
	       requests);
out:
	fflush(stdout);
	tcdrain(1);
	reboot(RB_AUTOBOOT);
	return 1;
}
