"""The `letter` grader: the letter of a choice, in a box or in a sentence such as `The answer must be B, since A is wrong.`

Letters that a sentence calls wrong are removed first (`_WRONG`). Of the rest, the last one that is called the answer counts, or
else the last one that is chosen in other words (`_STATED`), or else one that heads a line, or else the last one in parentheses.
"""

from __future__ import annotations

import re


def _any(words: str) -> str:
    """A pattern for any of the words or patterns, which are separated by commas, in either case."""
    return f"(?i:{'|'.join(word.strip() for word in words.split(','))})"


_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol|bm)\s*\{([^{}]*)\}|[*$\"“”`_#>]|\\[()\[\]]")
_LOWER_CASE = re.compile(r"(?:(?<=is )|(?<=: ))\([a-j]\)")

# "A number" and "I think" have no letter, unless one of these words follows
_AFTER_A = _any(
    "is, are, was, and, or, nor, but, not, because, since, as, which, with, to, in, for, by, from, it, has, seems, satisfies,"
    "would, must, can, cannot, does, fails, gives, fits, due, then, rather, instead"
)
_AFTER_I = _any("is, because, since")
_LETTER = (
    r"(?<!\w)(?<!\w\()[(\[]?([A-J])(?!['’\w^])"  # B, (B) or B), but not P(B) or B's
    rf"(?!(?<=A) +(?!{_AFTER_A}\b)[a-z])(?!(?<=I) +(?!{_AFTER_I}\b)[a-z])[)\]]?"
)
_ANY_LETTER = _LETTER.replace("([A-J])", "[A-J]")
_CHOICE = rf"(?:{_any('options?, choices?, letters?, answers?, statements?')}\s+)?"
_LETTERS = rf"(?P<letters>{_CHOICE}{_ANY_LETTER}(?:\s*(?:,|,?\s*\b(?:and|or|nor)\b)\s*{_CHOICE}{_ANY_LETTER}){{0,9}}+)"

_BE = (
    r"(?:is|are|was|were|'s|(?:must|has to|have to|should|would|can only|will|seems to|appears to)\s+"
    rf"(?:{_any('therefore, thus, then, clearly, indeed')}\s+)?be)"
)
_FILLER = _any(
    "therefore, thus, hence, then, clearly, of course, indeed, most likely, probably, obviously, definitely, surely, simply,"
    "just, also, actually, really, in fact, both, all, only, the, my, our, given by, with, us, option, choice, letter, answer"
)
_FILLERS = rf"(?:[\s,:]*\b{_FILLER}\b){{0,6}}+[\s,:]*"
_CORRECT = _any("correct, right, best, final, proper, most likely, most plausible, most appropriate, closest, only possible")

_BAD = _any(
    r"not\b(?! wrong| incorrect), never, neither, wrong, incorrect, false, impossible, invalid, out\b, eliminated, excluded,"
    r"ruled, too\b, tempting, mistake, common, distractor, trap, misconception, contradict"
)
_NOT = _any(
    r"\bnot, n['’]t, \bnever, \bneither, \bcannot, \beliminat\w+, \bexclud\w+, \brul\w+ out, \breject\w*, \bdiscard\w*,"
    r"\brather than, \binstead of, \bunlike, \bother than, \bexcept, \bif, \bmistake, \btrap, \bdistractor,"
    r"\b(?:wrong|incorrect) \w+, \btempting to \w+"
)
_OTHERS, _SAY = _any("many, some, most, students, people, others, one, you"), _any("pick, choose, say, select, guess, think")
_WRONG = [
    # B and C are wrong; B cannot be right; B fails
    re.compile(
        rf"{_LETTERS}(?:,? which)?\s*(?:{_BE}{_FILLERS}(?:an?\s+)?{_BAD}"
        r"|(?:is|are|was|were|do|does|did|can|could|would)n['’]t\b|can ?not\b|(?:do|does|did) not\b|fails?\b)"
    ),
    # not B; rather than B; a mistake is B; many choose B
    re.compile(
        rf"(?:{_NOT}|\b{_OTHERS}\s+(?:\w+\s+){{0,3}}{_SAY}(?:s|ed)?)\s+(?:(?:be|to|the|that|it|answer|option|choice|{_BE})\s+)*{_LETTERS}"
    ),
]

_ANSWER = (
    rf"(?:\b{_any('answers?, ans, answer choice')}\b\.?|\b{_any('the, my, our')} {_any('choice, option, pick')}\b"
    rf"|\b{_CORRECT}\s+(?:\w+\s+)?{_any('answer, option, choice, one, letter, statement')}\b)"
)
_ABOUT = rf"(?:\s+here)?(?:\s+{_any('to, for, of, in, that, which')}\s[^.;:\n]{{1,60}}?)?"
_END = r"(?=\s*(?:[.,;:!\n]|$))"
_CHOOSE = _any(
    "choose, chose, choosing, pick, select, go with, going with, opt for, leaves?, leaving, left with, conclude, say, guess"
)
_STATED = [
    re.compile("|".join(patterns))
    for patterns in (
        (
            rf"{_ANSWER}{_ABOUT}\s*(?:{_BE}|[:=→—–-])+{_FILLERS}{_LETTER}",  # the answer is B; Answer: Option B
            rf"{_LETTER}(?:\s*[(,:)][^.;\nA-J]{{0,40}}?)?\s+(?:{_BE}{_FILLERS}|to be )(?:{_CORRECT}|not wrong|not incorrect)\b",
            rf"{_LETTER}\s+{_BE}\s+(?:\w+\s+){{0,2}}{_any('answer, one that, one which')}\b",
        ),
        (
            rf"\b{_CHOOSE}{_FILLERS}{_LETTER}",
            rf"\b{_any('it, that, this')}(?:'s|\s+{_BE}){_FILLERS}{_LETTER}",
            rf"\b{_any('only')}\s+{_CHOICE}{_LETTER}",
            rf"\b{_any('is, matches, fits, equals, corresponds to')}\s+{_any('options?, choice, answer')}\s+{_LETTER}",
            rf"[.!?]\s+{_CHOICE}{_LETTER}[.!]?\s*$",
            rf"\b{_any('so, hence, thus, therefore, but, but rather')}[,:]?\s+{_CHOICE}{_LETTER}{_END}",
            rf"{_ANSWER}\s+{_LETTER}",
            rf"{_LETTER}\s+(?:it is\b|(?:is|are){_FILLERS}{_any('true, valid')}\b|is{_END})",
        ),
    )
]
_LINE = re.compile(rf"^[ \t]*(?:[-•]\s+)?{_CHOICE}{_LETTER}(?:[.:]?\s*$|[.:)]?\s+(?![a-z]).*$|[).:].*$)", re.MULTILINE)
_IN_PARENTHESES = re.compile(r"(?<!\w)\(([A-J])\)")
_IN_BOX = re.compile(rf"\s*(?:(?:the )?{_any('answer, option, choice')}(?: is)?[:\s]+)?[(\[{{\s]*([A-Za-z])(?![A-Za-z])")


def read(text: str, in_box: bool) -> str | None:
    """The letter in a box, or the one that a response without a box states as its answer; None without one."""
    text = _LOWER_CASE.sub(lambda letter: letter[0].upper(), _MARKUP.sub(lambda markup: markup[1] or "", text))
    if in_box:
        found = _IN_BOX.match(text)
        return found[1].upper() if found else None
    for wrong in _WRONG:
        text = wrong.sub(lambda match: match[0].replace(match["letters"], re.sub(_ANY_LETTER, "-", match["letters"])), text)
    for pattern in _STATED:
        if stated := ["".join(filter(None, match.groups())) for match in pattern.finditer(text)]:
            return stated[-1]
    lines = _LINE.findall(text)
    if len(set(lines)) == 1:  # several are the choices themselves
        return str(lines[0])
    aside = _IN_PARENTHESES.findall(_LINE.sub("", text))
    return str(aside[-1]) if aside else None


def right(answer: str, reference: str) -> bool:
    """Whether the letter is that of the reference, which may have parentheses or LaTeX around it."""
    return answer == read(reference, True)
