r"""One spelling for what is written in many ways. Nothing is computed here, and no two numbers become one.

After `normalized`, spacing commands are spaces or gone, `\dfrac` is `\frac{…}{…}`, `\text`-like commands are `\text{…}`, relations
have one name each, a degree sign is `°`, thousands are separated by `,` and multiplication is `\cdot`. Names that are written
without a backslash (`sqrt(2)`, `2*pi`, `sin(x)`) get theirs.
"""

from __future__ import annotations

import re
import unicodedata

from verifiers.math_text import closing_bracket, trimmed

_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": r"\cdot ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u2217": r"\cdot ", "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u2264": r"\leq ", "\u2265": r"\geq ",
    "\u2260": r"\neq ", "\u2248": r"\approx ", "\u221e": r"\infty ", "\u03c0": r"\pi ", "\u03b8": r"\theta ",
    "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u221a": r"\sqrt ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ",
    "\u00b1": r"\pm ", "\u2213": r"\mp ", "\u2205": r"\emptyset ", "\u00ba": "°", "\u2032": "'", "\u2019": "'", "\uff0c": ",",
    "\uff08": "(", "\uff09": ")", "\uff05": "%", "\uff1d": "=", "\uff1a": ":", "\uff1b": ";", "\uff0b": "+", "\uff0d": "-",
    "\uff0f": "/", "\uff0e": ".", "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u211d": r"\mathbb{R}", "\u2227": r"\wedge ",
    "\u2228": r"\vee ", "\u2192": r"\to ", "\u20ac": r"\$", "\u00a3": r"\$", "\u00a5": r"\$", "\u2220": r"\angle ",
    "\u25b3": r"\triangle ", "\u2216": r"\setminus ",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
# The radical sign reaches over a whole number, where the command takes one token.
_RADICAL = re.compile(r"√\s*(\d+(?:\.\d+)?)")

_GROUPS = [
    ("", r"displaystyle textstyle scriptstyle limits rm bf it normalsize large Large left right middle"),
    ("", r"bigl bigr bigm Bigl Bigr Bigm biggl biggr biggm Biggl Biggr Biggm big Big bigg Bigg"),
    (" ", r"quad qquad enspace thinspace hfill"),
    (r"\frac", r"dfrac tfrac cfrac"),
    (r"\binom", r"dbinom tbinom"),
    (r"\text", r"textbf textit textrm textnormal textsf texttt mbox hbox mathrm mathsf operatorname"),
    ("°", r"degree textdegree"),
    (r"\leq ", r"leqslant leqq le leq"),
    (r"\geq ", r"geqslant geqq ge geq"),
    (r"\neq ", r"ne"),
    ("<", "lt"),
    (">", "gt"),
    (r"\approx ", r"simeq cong thickapprox"),
    ("=", "coloneqq"),
    (r"\{", "lbrace"),
    (r"\}", "rbrace"),
    ("|", r"lvert rvert vert mvert"),
    (":", "colon"),
    (r"\cdot ", r"times ast"),
    ("/", "div"),
    (r"\emptyset ", r"varnothing O"),
    (r"\setminus ", r"backslash"),
    (r"\cup ", "bigcup"),
    (r"\dots ", r"ldots cdots dotsc dotsb"),
]
_RENAMED = {name: replacement for replacement, names in _GROUPS for name in names.split()}
_DROPPED_SIGNS = {
    "!": "",
    "/": "",
    ",": " ",
    ";": " ",
    ":": " ",
    ">": " ",
    " ": " ",
    "[": " ",
    "]": " ",
    "(": " ",
    ")": " ",
    "%": "%",
}

_ROW_END = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
# Without an environment there are no rows: two backslashes are one that was escaped twice.
_TWICE_ESCAPED = re.compile(r"\\\\(?=[A-Za-z{}()\[\]])")
# Thousands in their explicit spellings, before the spacing commands in them disappear.
_THOUSANDS = re.compile(r"(?<=\d)(?:\s*\{,\s*\}|,\\!|\\,|\\;|\\:)\s*(?=\d{3}(?!\d))")
_SPACED_THOUSANDS = re.compile(r"(?<=\d)(?:~|\\ )(?=\d{3}(?!\d))")
_EMPTY_DELIMITER = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)\s*\.")
_COMMAND = re.compile(r"\\(?:([A-Za-z]+)(?:(?<=operatorname)\*)?|([^A-Za-z]))")
_STYLED = re.compile(r"\\(?:mathbf|mathit|boldsymbol|bm|mathcal)\s*\{([^{}]*)\}")
_TEXT_WORD = re.compile(r"\\text\s*\{\s*(,?\s*(?:and|or)\s*,?|[A-Za-z]+)\s*\}")
_FUNCTION_WORDS = "sin cos tan cot sec csc log ln lg exp arcsin arccos arctan gcd lcm max min det"
_FUNCTION_NAMES = frozenset(_FUNCTION_WORDS.split())
_CIRCLE = re.compile(r"\^\s*\{?\s*(?:\\circ(?![A-Za-z])|°)\s*\}?")
_NOT_EQUAL = re.compile(r"\\not\s*=")
_RECURRING = re.compile(r"(?<=\.)(\d*)\\(?:bar|dot)\s*\{?(\d+)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?")
_CODE_SIGN = re.compile(r"<=|=<|>=|!=|==|:=|\*\*?|(?<!\\)\$|~")
_CODE_SIGNS = {
    "<=": r"\leq ",
    "=<": r"\leq ",
    ">=": r"\geq ",
    "!=": r"\neq ",
    "==": "=",
    ":=": "=",
    "*": r"\cdot ",
    "**": "^",
    "$": " ",
    "~": " ",
}
_BARE_NAME = re.compile(
    r"(?<![A-Za-z\\])(?:(?:sqrt|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|arcsin|arccos|arctan)(?=\s*[({^_\\\d]|[ ][a-z](?![A-Za-z]))"
    r"|frac(?=\s*\{)|pi(?![A-Za-z'])|(?:infinity|infty|inf)(?![A-Za-z]))"
)
_BARE_UNION = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
_QUOTED = re.compile(r"\s*(\*\*|__|[\"'`])(?P<inside>.*)\1[.\s]*", re.DOTALL)

_ARGUMENTS = re.compile(r"\\(frac|binom|sqrt|vec|hat|bar|overline|pmod|bmod)(?![A-Za-z])")
_INDEX = re.compile(r"\s*\[[^\[\]]*\]")
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|[^\s{}])")
_SCRIPT = re.compile(r"([\^_])\s*(-?\d+(?:\.\d+)?|-?[A-Za-z]|-?\\[A-Za-z]+(?![A-Za-z{]))")
_SPACES = re.compile(r"\s+")


def normalized(text: str) -> str:
    """The one spelling of an answer. Linear in the length of the text, which the caller has bounded."""
    text = _THOUSANDS.sub(",", _unquoted(_plain_characters(text)))
    if "\\" in text:
        text = _commands(text)
    text = _CODE_SIGN.sub(lambda match: _CODE_SIGNS[match[0]], text)
    text = _BARE_NAME.sub(_with_backslash, text)
    text = _BARE_UNION.sub(r"\\cup ", text)
    text = _SPACES.sub(" ", text)
    if "\\" in text:
        text = _with_braces(text)
    return trimmed(_SCRIPT.sub(r"\1{\2}", text))


def _commands(text: str) -> str:
    """LaTeX commands under the one name that the rest knows."""
    if r"\begin" not in text:
        text = _TWICE_ESCAPED.sub(r"\\", text)
    if "\\\\" in text:
        text = _ROW_END.sub(r"\\cr ", text)
    text = _SPACED_THOUSANDS.sub(" ", text)
    text = _NOT_EQUAL.sub(r"\\neq ", _EMPTY_DELIMITER.sub("", text))
    text = _COMMAND.sub(_renamed, text)
    text = _CIRCLE.sub("°", _STYLED.sub(r"\1", text))
    return _RECURRING.sub(r"\1\\overline{\2\3\4}", _TEXT_WORD.sub(_text_word, text))


def _renamed(match: re.Match[str]) -> str:
    name, sign = match[1], match[2]
    if name is None:
        return _DROPPED_SIGNS.get(sign, match[0])
    if name in _RENAMED:
        return _RENAMED[name]
    # A space glued to what follows it: \quadx is no command.
    return " " + name.partition("quad")[2] if name.startswith(("quad", "qquad")) else match[0]


def _text_word(match: re.Match[str]) -> str:
    r"""`\text{ and }` joins, `\text{sin}` is a function, `\text{x}` is a letter; other words stay text."""
    word = match[1]
    if len(word) == 1:
        return word
    if word in _FUNCTION_NAMES:
        return f"\\{word} "
    plain = word.strip(" ,")
    return f" {plain} " if plain in ("and", "or") else match[0]


def _with_backslash(match: re.Match[str]) -> str:
    return r"\infty" if match[0].startswith("inf") else "\\" + match[0]


def _unquoted(text: str) -> str:
    """Without the marks of Markdown or the quotation marks around the whole."""
    if text and text.strip()[:1] in ("*", "_", '"', "'", "`"):
        match = _QUOTED.fullmatch(text)
        if match is not None and match[1] not in match["inside"]:
            return match["inside"]
    return text


def _plain_characters(text: str) -> str:
    """ASCII where Unicode has another form: digits of any script, signs, superscripts, ½; marks that are not seen are dropped."""
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _VULGAR.sub(lambda match: r"\frac{" + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "}{") + "}", text)
    return "".join(map(_plain_character, _RADICAL.sub(r"\\sqrt{\1}", text)))


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
    r"""`\frac12`, `\frac1{2}`, `\sqrt3` and `\sqrt(3)` with braces around each argument."""
    position = 0
    while (match := _ARGUMENTS.search(text, position)) is not None:
        at = position = match.end()
        if match[1] == "sqrt" and (index := _INDEX.match(text, at)):
            at = index.end()
        for _ in range(2 if match[1] in ("frac", "binom") else 1):
            while at < len(text) and text[at] == " ":
                text = text[:at] + text[at + 1 :]
            closing = closing_bracket(text, at) if at < len(text) and text[at] in "{(" else -1
            if at < len(text) and text[at] == "{":
                at = closing + 1
                if at == 0:
                    return text
            elif match[1] == "sqrt" and closing > 0 and text[closing] == ")":
                text = text[:at] + "{" + text[at + 1 : closing] + "}" + text[closing + 1 :]
                at = closing + 1
            elif argument := _TOKEN.match(text, at):
                text = text[:at] + "{" + argument[1] + "}" + text[argument.end() :]
                at += len(argument[1]) + 2
    return text
