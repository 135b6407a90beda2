"""Run untrusted programs. The lowest package: it imports nothing of ours, and every other package may import it.

Nothing is contained yet beyond what the caller's own process contains: the Docker levels are the subject of docs/sandbox.md.
"""
