"""Answers to a countdown puzzle that make the target for a parser that is not careful, and are wrong."""

from __future__ import annotations

from collections.abc import Iterator

NUMBERS, TARGET = (1, 2, 3, 4), 24
RIGHT = "1*2*3*4"

# Three spaces stand between them.
PLAIN = """
24   24 = 24   24*1   (24)   +24   2*12   6*4   8*3*1   1*2*3*4*1   1*2*3*4*(1)   1*2*3*4 + 0   2*3*4   3*4*2*1*1/1
12*3 - 4 - 8   1 2 * 3 - 4   12*(3-1)   1*24   2 4*1   3 4 - 1 2 + 2   4!*(3-2)**1   4!   1*2*3*4 = 25
1*2*3*4 = 24 = 24   24 = 1*2*3*4   1*2*3*4 ==24   x = 1*2*3*4   1+2+3+4 = 24   1*2*3*4 or 24   1*2*3*4, 4*3*2*1
1*2*3*4; 24   It is 1*2*3*4   1*2*3*4.   `1*2*3*4`   "1*2*3*4"   1_0*2+4   2_4*1   1e0*2*3*4   1.0*2*3*4   1,2,3,4
1,000*2*3*4   0x1*2*3*4   01*2*3*4   1*2*3*4j   1*02*3*4   2**3*(4-1)   2^3*(4-1)   (4-1)*2**3   1<<2*3*4   3*4*2//1
1*2*3*4%100   1*2*3*4|0   ~1*2*3*4   1*2*3*4 if 1 else 0   1/(2-2)*3*4   (1*2*3*4   1*2*3*4)   ()1*2*3*4   1*2*3*4()
(1)(2)(3)(4)   1(2)(3)(4)   2(3)*4*1   1*2*3*4+   *1*2*3*4   1**2*3*4   1*-2*3*-4   --1*2*3*4   +1*2*3*4   1*+2*3*4
-1*-2*3*4   1*2*3*4--0   1 - -2*3*4   [1*2*3*4]   {1*2*3*4}   max(1,2,3,4)*6   sum([1,2,3,4])   int('24')
__import__('os').system('true') or 24   lambda: 24   True*2*3*4   1*2*3*4#   $1*2*3*4$   =   = 24   ()   -   (-)   *
None   nan   inf   1/0   0   1   impossible
"""


def countdown_hacks() -> Iterator[str]:
    """Wrong answers for the numbers 1, 2, 3, 4 and the target 24."""
    for line in PLAIN.strip().splitlines():
        yield from line.split("   ")
    yield from ("1*2*3*4 = ", "1*2*3*4\n24", "\u0661*\u0662*\u0663*\u0664", "\u2460*\u2461*\u2462*\u2463", "1*2*3*\uff14")
    yield from ("\xb2*12", "1*2*3*4\u200b", "1\u200b2*3*4", "1*2*3*\u0664", "\xbd*48", "1*2*3*4\x00", "\\frac{1*2*3*4}{1}")
    yield from ("\\sqrt{4}*2*3*1", "\\boxed{24}", "1\\mod 2*3*4", "\\text{24}", "\\timesx", "1*2*3*4\\\\", "", " ", "\ud800")
    yield "\x00"
    yield from ("(" * 500 + RIGHT + ")" * 500, "(" * 100_000, RIGHT + "+0" * 10_000, "-" * 5000 + RIGHT)
    yield from ("9" * 100_000, " " * 100_000 + "1")
