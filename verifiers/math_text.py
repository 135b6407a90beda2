r"""Answers as text: one spelling for what is written in many ways, bounds on size, and splitting at the outermost level.

After `normalized`, spacing commands are spaces or gone, `\dfrac` is `\frac{…}{…}`, `\text`-like commands are `\text{…}`, relations
have one name each, a degree sign is `°`, thousands are separated by `,` and multiplication is `\cdot`. Nothing is computed here.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 2000
MAX_DEPTH = 40
MAX_DIGITS = 400
MAX_EXPONENT_DIGITS = 4
MAX_TOWER = 3
MAX_ELEMENTS = 256

_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": r"\cdot ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u2217": r"\cdot ", "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u2264": r"\leq ", "\u2265": r"\geq ",
    "\u2260": r"\neq ", "\u2248": r"\approx ", "\u221e": r"\infty ", "\u03c0": r"\pi ", "\u03b8": r"\theta ",
    "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u221a": r"\sqrt ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ",
    "\u00b1": r"\pm ", "\u2213": r"\mp ", "\u2205": r"\emptyset ", "\u00ba": "°", "\u2032": "'", "\u2019": "'", "\uff0c": ",",
    "\uff08": "(", "\uff09": ")", "\uff05": "%", "\uff1d": "=", "\uff1a": ":", "\uff1b": ";", "\uff0b": "+", "\uff0d": "-",
    "\uff0f": "/", "\uff0e": ".", "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u211d": r"\mathbb{R}", "\u2227": r"\wedge ",
    "\u2228": r"\vee ", "\u2192": r"\to ", "\u20ac": r"\$", "\u00a3": r"\$", "\u00a5": r"\$",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")

_SUBSTITUTIONS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\\\(?:\s*\[[^\]]*\])?", r"\\cr "),
        # Thousands in their explicit spellings, before the spacing commands in them disappear.
        (r"(?<=\d)(?:\{,\}|,\\!|\\,|\\;|\\:)\s*(?=\d{3}(?!\d))", ","),
        (r"(?<=\d)(?:~|\\ )(?=\d{3}(?!\d))", " "),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)\s*\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*", ""),
        (r"\\(?:displaystyle|textstyle|scriptstyle|limits|rm|bf|it|normalsize|large|Large)(?![A-Za-z])", ""),
        (r"\\!|\\/", ""),
        (r"\\text\s*\{\s*,?\s*(and|or)\s*,?\s*\}", r" \1 "),
        (r"\\[,;:> ]|~|\\q?quad|\\(?:enspace|thinspace|hfill)(?![A-Za-z])", " "),
        (r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])", r"\\frac"),
        (r"\\(?:dbinom|tbinom)(?![A-Za-z])", r"\\binom"),
        (r"\\(?:textbf|textit|textrm|textnormal|textsf|texttt|mbox|hbox|mathrm|mathsf|operatorname\*?)\s*\{", r"\\text{"),
        (r"\\(?:mathbf|mathit|boldsymbol|bm|mathcal)\s*\{([^{}]*)\}", r"\1"),
        (r"\\text\s*\{\s*(sin|cos|tan|cot|sec|csc|log|ln|lg|exp|arcsin|arccos|arctan|gcd|lcm|max|min|det)\s*\}", r"\\\1 "),
        (r"\\text\s*\{\s*([A-Za-z])\s*\}", r"\1"),
        (r"\^\s*\{?\s*(?:\\circ|\\degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])|\\textdegree(?![A-Za-z])", "°"),
        (r"\\(?:leqslant|leqq|le)(?![A-Za-z])|<=|=<", r"\\leq "),
        (r"\\(?:geqslant|geqq|ge)(?![A-Za-z])|>=", r"\\geq "),
        (r"\\(?:ne|not\s*=)(?![A-Za-z])|!=", r"\\neq "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:simeq|cong|thickapprox)(?![A-Za-z])", r"\\approx "),
        (r"==|:=|\\coloneqq(?![A-Za-z])", "="),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\(?:colon)(?![A-Za-z])", ":"),
        (r"\\(?:times|ast)(?![A-Za-z])|\*(?!\*)(?<!\*\*)", r"\\cdot "),
        (r"\*\*", "^"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset "),
        (r"\\(?:ldots|cdots|dotsc|dotsb)(?![A-Za-z])", r"\\dots "),
        (r"\\%", "%"),
        (r"\\[\[\]()]|(?<!\\)\$", " "),
        (r"\s+", " "),
    ]
]
# Without an environment there are no rows: two backslashes are one that was escaped twice.
_TWICE_ESCAPED = re.compile(r"\\\\(?=[A-Za-z{}()\[\]])")
_ARGUMENTS = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])")
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|[^\s{}])")
_SCRIPT = re.compile(r"([\^_])\s*(-?\d+(?:\.\d+)?|-?[A-Za-z]|-?\\[A-Za-z]+(?![A-Za-z{]))")
_BRACKETS = re.compile(r"\\begin\s*\{\w+\*?\}|\\end\s*\{\w+\*?\}|\\langle|\\rangle|\\[{}]|[\[\](){}]")
_UNSPACED = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
_SPACED_COMMA = re.compile(r"(?<=\d), (?=\d)")
_TEXT_COMMAND = re.compile(r"\\text\s*\{([^{}]*)\}")
_OPENING, _CLOSING = ("(", "[", "{", r"\{", r"\langle"), (")", "]", "}", r"\}", r"\rangle")


def normalized(text: str) -> str:
    """The one spelling of an answer. Idempotent; linear in the length of the text, which the caller has bounded."""
    text = _plain_characters(text)
    if r"\begin" not in text:
        text = _TWICE_ESCAPED.sub(r"\\", text)
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    text = _SCRIPT.sub(r"\1{\2}", _with_braces(text))
    return trimmed(text)


def trimmed(text: str) -> str:
    """Without white space, closing punctuation and braces or boxes around the whole."""
    while True:
        shorter = text.strip().rstrip(".,;: ").lstrip(",; ")
        shorter = shorter.removeprefix(r"\boxed") if shorter.startswith(r"\boxed{") else shorter
        if shorter.startswith("{") and closing_bracket(shorter, 0) == len(shorter) - 1:
            shorter = shorter[1:-1]
        if shorter == text:
            return text
        text = shorter


def literal_key(text: str) -> str:
    """Equal for answers that differ in nothing but spacing and text commands. Spaces between letters or digits count."""
    spaced = " ".join(_TEXT_COMMAND.sub(r" \1 ", text).split())
    # "32, 349" is two numbers, "32,349" is one.
    return _UNSPACED.sub("", _SPACED_COMMA.sub(";", spaced))


def excess_of_text(text: str) -> str | None:
    """Why a text is too large to be taken apart, or None."""
    if len(text) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    if max((len(run) for run in re.findall(r"\d+", text)), default=0) > MAX_DIGITS:
        return f"a number of more than {MAX_DIGITS} digits"
    if text.count(",") + text.count(";") + text.count("&") + text.count("\\\\") >= MAX_ELEMENTS:
        return f"more than {MAX_ELEMENTS} elements"
    depth = 0
    for match in re.finditer(r"[({\[]|[)}\]]", text):
        depth += 1 if match[0] in "({[" else -1
        if depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH}"
    return None


def excess_of_value(text: str) -> str | None:
    """Why what a normalized text writes is too large to be computed, or None. It may still equal a reference word for word."""
    if re.search(rf"\^\{{?\s*[-+]?\s*\d{{{MAX_EXPONENT_DIGITS + 1},}}", text):
        return f"an exponent of more than {MAX_EXPONENT_DIGITS} digits"
    if "!!" in text or re.search(r"\d{4,}\s*[)}]?\s*!", text):
        return "a factorial beyond 999!"
    open_exponents: list[bool] = []
    for match in re.finditer(r"\^\s*\{|[{]|[}]", text):
        if match[0] != "}":
            open_exponents.append(match[0] != "{")
        elif open_exponents:
            open_exponents.pop()
        if sum(open_exponents) > MAX_TOWER:
            return f"a tower of more than {MAX_TOWER} exponents"
    return None


def closing_bracket(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes, of whatever kind it closes with; -1 when it does not."""
    depth = 0
    for match in _BRACKETS.finditer(text, start):
        depth += 1 if _opens(match[0]) else -1
        if depth <= 0:
            return match.end() - 1
    return -1


def outermost(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Matches of a pattern that stand in no bracket and no environment."""
    spans = []
    depth, begins = 0, 0
    for match in _BRACKETS.finditer(text):
        change = 1 if _opens(match[0]) else -1
        if depth == 0 and change == 1:
            spans.append((begins, match.start()))
        depth = max(0, depth + change)
        if depth == 0:
            begins = match.end()
    if depth == 0:
        spans.append((begins, len(text)))
    return [match for begins, ends in spans for match in pattern.finditer(text, begins, ends)]


def split_outermost(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The pieces between the outermost matches of a pattern."""
    pieces, begins = [], 0
    for match in outermost(text, pattern):
        pieces.append(text[begins : match.start()])
        begins = match.end()
    return [*pieces, text[begins:]]


def is_balanced(text: str) -> bool:
    """Whether every bracket opens before it closes; `[0, 1)` is balanced."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += 1 if _opens(match[0]) else -1
        if depth < 0:
            return False
    return depth == 0


def _opens(bracket: str) -> bool:
    return bracket in _OPENING or bracket.startswith(r"\begin")


def _plain_characters(text: str) -> str:
    """ASCII where Unicode has another form: digits of any script, signs, superscripts, ½; marks that are not seen are dropped."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _VULGAR.sub(lambda match: r"\frac{" + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "}{") + "}", text)
    return "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Cf":
        return ""
    return " " if category == "Zs" else character


def _with_braces(text: str) -> str:
    r"""`\frac12`, `\frac1{2}` and `\sqrt3` with braces around each argument."""
    position = 0
    while (match := _ARGUMENTS.search(text, position)) is not None:
        at = position = match.end()
        if match[1] == "sqrt" and (index := re.compile(r"\s*\[[^\[\]]*\]").match(text, at)):
            at = index.end()
        for _ in range(1 if match[1] == "sqrt" else 2):
            while at < len(text) and text[at] == " ":
                text = text[:at] + text[at + 1 :]
            if at < len(text) and text[at] == "{":
                at = closing_bracket(text, at) + 1
                if at == 0:
                    return text
            elif argument := _TOKEN.match(text, at):
                text = text[:at] + "{" + argument[1] + "}" + text[argument.end() :]
                at += len(argument[1]) + 2
    return text
