/* Preloaded into the User-Mode-Linux kernel, which must run on whatever processor the tests meet.
 *
 * UML saves its processes' extended registers with PTRACE_GETREGSET into 2696 bytes (x87 to AVX-512 and protection
 * keys) and hands them back with PTRACE_SETREGSET. Linux accepts only a whole state there: EFAULT on processors whose
 * state is larger (AMX: 11008 bytes), and UML panics at its first process. So complete what UML hands over with what
 * the process has beyond it. Source: xstateregs_set() in the kernel's arch/x86/kernel/fpu/regset.c.
 */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char whole[1 << 16] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	long pid = va_arg(arguments, long), address = va_arg(arguments, long), data = va_arg(arguments, long);
	va_end(arguments);
	/* The kernel returns what it peeks at through `data`; libc returns it as the result. */
	long peeked = 0;
	int peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
	long result = syscall(SYS_ptrace, (long)request, pid, address, peeks ? (long)&peeked : data);
	if (peeks && result >= 0) {
		errno = 0;
		return peeked;
	}
	if (result == -1 && errno == EFAULT && request == PTRACE_SETREGSET && address == NT_X86_XSTATE) {
		const struct iovec *part = (const struct iovec *)data;
		struct iovec all = {whole, sizeof whole};
		result = syscall(SYS_ptrace, (long)PTRACE_GETREGSET, pid, address, (long)&all);
		if (result == -1 || part->iov_len > all.iov_len)
			return -1;
		memcpy(whole, part->iov_base, part->iov_len);
		result = syscall(SYS_ptrace, (long)PTRACE_SETREGSET, pid, address, (long)&all);
	}
	return result;
}
