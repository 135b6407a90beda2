"""What runs inside the sandbox: standard library only, copied into the image, reviewed as the wall it is.

`fork_server` is the trusted side (it judges clocks and sizes), `walls` is what a program loses before it runs, `job` is the process
it runs in, `calls` the text of questions and answers, `syscalls` the table of what remains allowed.
"""
