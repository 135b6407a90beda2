"""Run untrusted programs. The lowest package: it imports nothing of ours, and every other package may import it.

`pool.open_sandbox` is the door; `types` says what goes in and comes out, `docker` and `bubblewrap` where programs run, and `agent/`
is what runs there: a fork server, and the walls that a program is put behind.

Contained: processes and threads without end, memory, CPU time, sleep, output, disk, inodes and descriptors; network in any form;
files, processes, shared memory, keys and sockets of others, of the host and of earlier programs; survivors of any kind; forged
replies; privileges, limits, clocks and names. Not contained: bugs of the kernel (level gvisor has another one), timing side
channels, and CPU time taken from neighbours within the slots' share. docs/sandbox.md has both lists in full.
"""
