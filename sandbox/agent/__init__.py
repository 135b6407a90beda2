"""What runs inside the sandbox: standard library only, copied into the image, reviewed as the wall it is.

`fork_server` is the trusted side, `watched` how it judges a job's clocks and sizes, `walls` what a program loses before it runs,
`job` the process it runs in, `calls` the text of questions and answers, `answering` the loop that answers, `syscalls` the table of
what remains allowed.
"""
