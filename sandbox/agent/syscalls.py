"""The system calls that a program may make, by name and x86_64 number. What is not here is refused with EPERM.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl of Linux. The container's own profile is this table and SERVER_ONLY, by name.
"""

from __future__ import annotations

# Files, within the program's own tmpfs or read-only.
_FILES = """
read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 ioctl=16 pread64=17 pwrite64=18 readv=19 writev=20 access=21
pipe=22 select=23 dup=32 dup2=33 sendfile=40 fcntl=72 flock=73 fsync=74 fdatasync=75 truncate=76 ftruncate=77 getdents=78 getcwd=79
chdir=80 fchdir=81 rename=82 mkdir=83 rmdir=84 creat=85 link=86 unlink=87 symlink=88 readlink=89 chmod=90 fchmod=91 chown=92
fchown=93 lchown=94 umask=95 utime=132 mknod=133 statfs=137 fstatfs=138  readahead=187 getxattr=191 lgetxattr=192
fgetxattr=193 listxattr=194 llistxattr=195 flistxattr=196 getdents64=217 fadvise64=221 utimes=235 openat=257 mkdirat=258 mknodat=259
fchownat=260 futimesat=261 newfstatat=262 unlinkat=263 renameat=264 linkat=265 symlinkat=266 readlinkat=267 fchmodat=268
faccessat=269 pselect6=270 ppoll=271 sync_file_range=277 utimensat=280 fallocate=285 dup3=292 pipe2=293 preadv=295 pwritev=296
renameat2=316 memfd_create=319 copy_file_range=326 preadv2=327 pwritev2=328 statx=332 close_range=436 openat2=437
faccessat2=439
"""
_MEMORY = """
mmap=9 mprotect=10 munmap=11 brk=12 mremap=25 msync=26 mincore=27 madvise=28 mlock=149 munlock=150 mlockall=151 munlockall=152
get_mempolicy=239 membarrier=324 mlock2=325 pkey_mprotect=329 pkey_alloc=330 pkey_free=331
"""
_PROCESSES = """
getpid=39 clone=56 fork=57 vfork=58 execve=59 exit=60 wait4=61 kill=62 getrlimit=97 getrusage=98 times=100 getuid=102 getgid=104
setuid=105 setgid=106 geteuid=107 getegid=108 setpgid=109 getppid=110 getpgrp=111 setsid=112 setreuid=113 setregid=114 getgroups=115
setgroups=116 setresuid=117 getresuid=118 setresgid=119 getresgid=120 getpgid=121 setfsuid=122 setfsgid=123 getsid=124 capget=125
capset=126 getpriority=140 setpriority=141 sched_getparam=143 sched_getscheduler=145 sched_get_priority_max=146
sched_get_priority_min=147 sched_rr_get_interval=148 prctl=157 arch_prctl=158 setrlimit=160 gettid=186 tkill=200 futex=202
sched_setaffinity=203 sched_getaffinity=204 set_tid_address=218 restart_syscall=219 exit_group=231 tgkill=234 waitid=247
ioprio_get=252 set_robust_list=273 get_robust_list=274 prlimit64=302 getcpu=309 sched_getattr=315 rseq=334 pidfd_send_signal=424
pidfd_open=434 futex_waitv=449 sched_yield=24
"""
_SIGNALS = """
rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 pause=34 rt_sigpending=127 rt_sigtimedwait=128 rt_sigqueueinfo=129
rt_sigsuspend=130 sigaltstack=131 signalfd=282 signalfd4=289 rt_tgsigqueueinfo=297
"""
_TIME = """
nanosleep=35 getitimer=36 alarm=37 setitimer=38 gettimeofday=96 time=201 timer_create=222 timer_settime=223 timer_gettime=224
timer_getoverrun=225 timer_delete=226 clock_gettime=228 clock_getres=229 clock_nanosleep=230 timerfd_create=283 timerfd_settime=286
timerfd_gettime=287
"""
_EVENTS = """
epoll_create=213 epoll_wait=232 epoll_ctl=233 epoll_pwait=281 eventfd=284 eventfd2=290 epoll_create1=291 epoll_pwait2=441
"""
# Of sockets, those of the family AF_UNIX; the filter looks at the family. Messages with descriptors cannot be sent: descriptors in
# flight in a cycle of sockets outlive their program until the kernel happens to look for such cycles.
_SOCKETS = """
socket=41 connect=42 accept=43 sendto=44 recvfrom=45 recvmsg=47 shutdown=48 bind=49 listen=50 getsockname=51
getpeername=52 socketpair=53 setsockopt=54 getsockopt=55 accept4=288 recvmmsg=299
"""
_MACHINE = "uname=63 sysinfo=99 getrandom=318 sched_yield=24"


def _table(*texts: str) -> dict[str, int]:
    return {name: int(number) for text in texts for name, _, number in (pair.partition("=") for pair in text.split())}


ALLOWED = _table(_FILES, _MEMORY, _PROCESSES, _SIGNALS, _TIME, _EVENTS, _SOCKETS, _MACHINE)

# What the fork server does before a program runs: namespaces (clone with their flags), mounts, descriptors passed on, the filter.
SERVER_ONLY = ("mount", "mount_setattr", "seccomp", "sendmsg")

# Calls whose arguments the filter looks at.
CLONE, CLONE3, SOCKET, SOCKETPAIR, SETSOCKOPT, IOCTL, PRCTL = 56, 435, 41, 53, 54, 16, 157
SETRLIMIT, PRLIMIT, MMAP, MEMFD_CREATE = 160, 302, 9, 319
