// SPDX-License-Identifier: GPL-2.0
/*
 * The platforms, and one booted machine: QEMU's command, its process, the
 * verdict port (see lab/init.c), what the console says when it dies.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "machine.h"

/* Where QEMU has its end of the socket pair, see "-chardev socket,fd=". */
#define VERDICT_FD	9

#define QEMU_X86(more)							\
	"qemu-system-x86_64 -M q35 -accel tcg,thread=single "		\
	"-cpu max,phys-bits=48" more " -smp 2 -m 4G"
#define QEMU_ARM64							\
	"qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 "	\
	"-accel tcg,thread=single -cpu max -smp 2 -m 4G"
#define CMDLINE								\
	"panic=-1 printk.devkmsg=on kunit.autorun=0 log_buf_len=4M no_hash_pointers GMEM_ALONE=1 "
#define CMDLINE_X86	"no_timer_check "

/*
 * A NAME=value that the kernel does not know goes to the environment of PID 1,
 * and so to the tests.  GMEM_SCALE is how many per cent of their loops those that
 * race shall turn: the debug kernel is 5 to 30 times slower under emulation.
 * GMEM_ALONE: what is counted machine-wide is the test's own doing.
 *
 * no_timer_check: the kernel waits for ten ticks, in time that the emulated CPU counts
 * by instructions, while the ticks come by the clock.  On a busy machine they come too
 * late, and the kernel panics: "IO-APIC + timer doesn't work".
 *
 * On x86-shadow KVM shadows the guest's page tables, as on a processor that has but
 * one kind of them.  It has the time-outs of a machine that runs beside two others.
 *
 * Without la57=off KASAN now and then takes an interrupt that comes at boot while
 * identify_cpu() has no CPU features for a wild access: it asks cpu_feature_enabled()
 * how many levels of page tables there are, and so where its shadow begins.
 */
const struct platform platforms[NR_PLATFORMS] = {
	{ "x86", "x86", "x86", QEMU_X86(""), "arch/x86/boot/bzImage",
	  "ttyS", CMDLINE CMDLINE_X86 "numa=fake=2", "kvm_amd", 1, LEVEL_QUICK },
	{ "x86-debug", "x86", "x86-debug", QEMU_X86(",la57=off"), "arch/x86/boot/bzImage",
	  "ttyS", CMDLINE CMDLINE_X86 "numa=fake=2 GMEM_SCALE=10", "kvm_amd", 5, LEVEL_FULL },
	{ "x86-shadow", "x86", "x86", QEMU_X86(""), "arch/x86/boot/bzImage",
	  "ttyS", CMDLINE CMDLINE_X86 "numa=fake=2 kvm_amd.npt=0", "Nested Paging disabled", 2,
	  LEVEL_FULL },
	{ "x86-kcsan", "x86", "x86-kcsan", QEMU_X86(""), "arch/x86/boot/bzImage",
	  "ttyS", CMDLINE CMDLINE_X86 "numa=fake=2 GMEM_SCALE=10", "kvm_amd", 10, LEVEL_SOAK },
	{ "arm64", "arm64", "arm64", QEMU_ARM64, "arch/arm64/boot/Image",
	  "ttyAMA", CMDLINE "kvm-arm.mode=nvhe", "Hyp nVHE mode initialized",
	  1, LEVEL_FULL },
	{ "arm64-protected", "arm64", "arm64", QEMU_ARM64,
	  "arch/arm64/boot/Image",
	  "ttyAMA", CMDLINE "kvm-arm.mode=protected",
	  "mode initialized successfully", 1, LEVEL_FULL },
	{ "arm64-debug", "arm64", "arm64-debug", QEMU_ARM64,
	  "arch/arm64/boot/Image",
	  "ttyAMA", CMDLINE "kvm-arm.mode=protected GMEM_SCALE=10",
	  "mode initialized successfully", 5, LEVEL_SOAK },
	{ "host", "host", NULL, NULL, NULL, NULL, NULL, NULL, 1, LEVEL_QUICK },
};

/* Say why, and end with status 2: not a test has failed but the lab. */
void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("lab: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(2);
}

/* Of the clock that nobody sets. */
long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/*
 * The QEMU command.  Without @words: for the runner, with the verdict port and
 * the console in a file.  With @words (for the kernel command line): on this
 * terminal; with @console the kernel's messages go to that file, and the
 * terminal is the second serial port, or, where there is but one, hvc0.  There a
 * clock that counts instructions keeps a slow machine from spending its time on the
 * timers of a guest in a guest.  @image and @initrd: other ones than the platform's.
 */
void qemu_command(const struct platform *p, const char *words, const char *image,
		  const char *initrd, const char *console, char *buf, size_t size)
{
	char serial[512], own_image[256], own_initrd[256];

	if (!words)
		snprintf(serial, sizeof(serial),
			 "-chardev file,id=console,path=build/logs/%s/console.log,"
			 "append=on -serial chardev:console "
			 "-device virtio-serial-pci "
			 "-chardev socket,id=verdict,fd=%d "
			 "-device virtserialport,chardev=verdict,name=lab.verdict",
			 p->name, VERDICT_FD);
	else if (console && !strcmp(p->family, "x86"))
		snprintf(serial, sizeof(serial), "-serial file:%s -serial stdio",
			 console);
	else if (console)
		snprintf(serial, sizeof(serial),
			 "-smp 1 -icount shift=0,sleep=off "
			 "-serial file:%s -chardev stdio,id=terminal "
			 "-device virtio-serial-pci -device virtconsole,chardev=terminal",
			 console);
	else
		snprintf(serial, sizeof(serial), "-serial mon:stdio");
	snprintf(own_image, sizeof(own_image), "build/%s/%s", p->kernel, p->image);
	snprintf(own_initrd, sizeof(own_initrd), "build/%s/initramfs.cpio", p->kernel);
	snprintf(buf, size,
		 "%s -nodefaults -no-user-config -display none -no-reboot %s "
		 "-kernel %s -initrd %s -append 'console=%s0 %s %s'",
		 p->qemu, serial, image ?: own_image, initrd ?: own_initrd,
		 p->console, p->cmdline, words ?: "");
}

static void exec_qemu(const struct platform *p, const char *image, const char *initrd,
		      int port)
{
	char cmd[3000], shell[3200];

	qemu_command(p, NULL, image, initrd, NULL, cmd, sizeof(cmd));
	snprintf(shell, sizeof(shell), "exec %s >>build/logs/%s/qemu.log 2>&1",
		 cmd, p->name);
	setpgid(0, 0);
	/* Nobody else would end it when the runner is killed. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(port, VERDICT_FD);
	execl("/bin/sh", "sh", "-c", shell, NULL);
	_exit(127);
}

/* Start QEMU; false: it cannot be started. */
bool boot_machine(struct machine *m, const struct platform *p, const char *image,
		  const char *initrd)
{
	char console[256];
	struct stat st;
	int sv[2];

	memset(m, 0, sizeof(*m));
	m->p = p;
	m->port = -1;
	snprintf(console, sizeof(console), "build/logs/%s/console.log", p->name);
	m->console = stat(console, &st) ? 0 : st.st_size;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		return false;
	m->pid = fork();
	if (!m->pid)
		exec_qemu(p, image, initrd, sv[1]);
	close(sv[1]);
	m->port = sv[0];
	return m->pid > 0;
}

/* End the machine: nicely if it answers within ten seconds. */
void end_machine(struct machine *m)
{
	int i;

	/* kill(-1, ...) would end much more. */
	if (m->pid <= 0)
		goto out;
	if (write(m->port, "off\n", 4) == 4)
		for (i = 0; i < 100; i++) {
			if (waitpid(m->pid, NULL, WNOHANG) == m->pid)
				goto out;
			usleep(100000);
		}
	kill(m->pid, SIGKILL);
	waitpid(m->pid, NULL, 0);
out:
	close(m->port);
}

/* In @buf: the first line of @f that has a word of a death; false: none has. */
static bool find_word(FILE *f, char *buf, size_t size)
{
	static const char * const words[] = {
		"Kernel panic", "BUG:", "Oops", "hyp panic", "kernel BUG",
	};
	char line[1024], *at;
	size_t i;

	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\r\n")] = '\0';
		for (i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
			at = strstr(line, words[i]);
			if (!at)
				continue;
			snprintf(buf, size, "the machine died: %.120s", at);
			return true;
		}
	}
	return false;
}

/* Why the machine died, in @buf: what its console says, else QEMU itself. */
static void find_death(const struct machine *m, char *buf, size_t size)
{
	char path[128], line[1024];
	FILE *f;

	snprintf(buf, size, "the machine died");
	snprintf(path, sizeof(path), "build/logs/%s/qemu.log", m->p->name);
	f = fopen(path, "r");
	if (f && fgets(line, sizeof(line), f))
		snprintf(buf, size, "%.*s", (int)strcspn(line, "\n"), line);
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "build/logs/%s/console.log", m->p->name);
	f = fopen(path, "r");
	if (!f)
		return;
	fseek(f, m->console, SEEK_SET);
	find_word(f, buf, size);
	fclose(f);
}

/* Copy the console's end to the log. */
static void append_console(const struct platform *p, FILE *log)
{
	char path[128], buf[4096];
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "build/logs/%s/console.log", p->name);
	f = fopen(path, "r");
	if (!f)
		return;
	fputs("---- console ----\n", log);
	fseek(f, -16384, SEEK_END);
	while ((n = fread(buf, 1, sizeof(buf), f)))
		fwrite(buf, 1, n, log);
	fclose(f);
}

/* A line of the port, in @line; false: its end (*@died), or @deadline. */
static bool read_line(struct machine *m, char *line, size_t size, long long deadline,
		      bool *died)
{
	struct pollfd fd = { m->port, POLLIN, 0 };
	ssize_t n;
	char *nl;

	*died = false;
	while (!(nl = memchr(m->buf, '\n', m->len))) {
		long long left = deadline - now_ms();

		if (left <= 0)
			return false;
		if (m->len == sizeof(m->buf))
			m->len = 0;
		if (poll(&fd, 1, left) <= 0)
			continue;
		n = read(m->port, m->buf + m->len, sizeof(m->buf) - m->len);
		if (n <= 0) {
			*died = true;
			return false;
		}
		m->len += n;
	}
	*nl++ = '\0';
	snprintf(line, size, "%s", m->buf);
	m->len -= nl - m->buf;
	memmove(m->buf, nl, m->len);
	return true;
}

/*
 * The next line from the machine, in @line, without its newline.  False: it is dead,
 * or silent until @deadline (of now_ms()); @why has the reason, and @log the console.
 */
bool machine_line(struct machine *m, FILE *log, char *line, size_t size,
		  long long deadline, char *why, size_t why_size)
{
	bool died;

	if (read_line(m, line, size, deadline, &died))
		return true;
	snprintf(why, why_size, "no answer from the machine");
	if (died) {
		/* QEMU may still be writing the console's last lines. */
		usleep(300000);
		find_death(m, why, why_size);
	}
	append_console(m->p, log);
	return false;
}
