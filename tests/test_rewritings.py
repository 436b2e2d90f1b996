"""The `math` grader on real references and responses, and beside math-verify alone, which it is never worse than."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from tts.grading import algebra
from tts.grading.boxes import boxed

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
SETS = ["1,2", "\\{1, 2, 3\\}", "-3, 5", "\\frac{1}{2}, 2", "\\{\\pi, 4\\}"]  # the data has none
FILES = {"math_pool_100x8.jsonl": 100, "gsm8k_test_200.jsonl": 20, "aime24.jsonl": 10, "mawps_singleop.jsonl": 10}


def references():
    """Distinct reference answers: all of the MATH problems, whose answers are of many kinds, and some numbers."""
    found = [*SETS]
    for name, limit in FILES.items():
        rows = [json.loads(line) for line in (DATA / name).read_text().splitlines()[:limit]]
        found += [str(row.get("answer", row.get("target"))).rpartition("####")[2].strip() for row in rows]
    return [reference for reference in dict.fromkeys(found) if reference != "4:30p.."]  # of which math-verify reads the 4


def a_fraction(reference):
    if re.fullmatch(r"-?\d+(\.0)?", reference):
        return f"\\frac{{{2 * int(float(reference))}}}{{2}}"
    ratio = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", reference)
    return ratio and f"{ratio[1]}{3 * int(ratio[2])}/{3 * int(ratio[3])}"


def a_decimal(reference):
    if re.fullmatch(r"-?\d+", reference):
        return f"{reference}.0"
    ratio = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", reference)
    exact = ratio and Fraction(int(ratio[2]), int(ratio[3]))
    return exact and exact.denominator in (2, 4, 5, 8, 10, 20) and f"{ratio[1]}{float(exact)}"


def a_percentage(reference):
    if reference.endswith("\\%"):
        return reference.replace("\\%", " percent")
    return re.fullmatch(r"\d+", reference) and f"{reference}\\%"  # as math-verify has it, 5 is 5 %


def another_order(reference):
    inside = re.fullmatch(r"(\\\{)?([^(\[]+?,[^)\]]+?)(\\\})?", reference)
    parts = inside and not re.search(r",\d{3}\b|\{,\}", reference) and inside[2].split(",")
    return parts and f"{inside[1] or ''}{', '.join(part.strip() for part in reversed(parts))}{inside[3] or ''}"


def separated(comma):
    def rewrite(reference):
        plain = reference.replace("{,}", "").replace(",", "")
        return re.fullmatch(r"\d{4,}", plain) and f"{int(plain):,}".replace(",", comma)

    return rewrite


def number(form):
    return lambda reference: re.fullmatch(r"-?\d+(\.\d+)?|-?\\frac\{\d+\}\{\d+\}", reference) and form % reference


def anything(form):
    return lambda reference: form % reference


REWRITINGS = {
    "as it is": anything("%s"),
    "a fraction": a_fraction,
    "dfrac": lambda reference: "\\frac" in reference and reference.replace("\\frac", "\\dfrac"),
    "a decimal": a_decimal,
    "percent": a_percentage,
    "units": number("%s\\text{ cm}"),
    "plain units": number("%s cm"),
    "square units": number("%s \\, \\mathrm{cm}^2"),
    "degrees": number("%s^\\circ"),
    "dollars": number("\\$%s"),
    "x =": anything("x = %s"),
    "set order": another_order,
    "text": anything("\\text{%s}"),
    "dollar signs": anything("$%s$"),
    "brackets": anything("\\(%s\\)"),
    "bold text": anything("\\textbf{%s}"),
    "bold mathematics": anything("\\mathbf{%s}"),
    "bold symbol": anything("\\boldsymbol{%s}"),
    "bold markdown": anything("**%s**"),
    "a full stop": anything("%s."),
    "a space": anything(" %s "),
    "commas": separated(","),
    "braced commas": separated("{,}"),
    "thin spaces": separated("\\,"),
    "spaces": separated(" "),
}
SENTENCES = {
    "boxed": "So we get \\boxed{%s}.",
    "boxed in mathematics": "Therefore $x = \\boxed{%s}$ is what we want.",
    "displayed": "Therefore, the answer is\n\n\\[\n\\boxed{%s}\n\\]",
    "in mathematics": "The answer is $%s$.",
    "bold": "The answer is **%s**.",
    "plain": "After 3 steps, the answer is %s.",
}


def alone(text, reference):
    """The verdict of math-verify with nothing around it."""
    from math_verify import parse, verify

    found = parse(text, parsing_timeout=None)
    return any(
        verify(parse(form % reference, parsing_timeout=None), found, timeout_seconds=None) for form in ("$%s$", "\\boxed{%s}")
    )


def ours(text, reference):
    box = boxed(text)
    answer = algebra.read(text, False) if box is None else algebra.read(box, True)
    return answer is not None and algebra.right(answer, reference)


def test_the_verdicts_on_800_real_responses_are_right():
    rows = [json.loads(line) for line in (DATA / "math_pool_100x8.jsonl").read_text().splitlines()]
    wrong = [
        (row["answer"], response[-60:])
        for row in rows
        for response, correct in zip(row["responses"], row["correct"], strict=True)
        if ours(response, row["answer"]) != (correct or "\\boxed{10000}" in response)  # which the other grader has wrong
    ]
    assert sum(len(row["responses"]) for row in rows) == 800
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("sentence", SENTENCES)
def test_no_rewriting_of_a_right_answer_is_lost_that_math_verify_finds(sentence):
    lost, found = [], 0
    for kind, rewrite in REWRITINGS.items():
        for reference in references():
            if written := rewrite(reference):
                text = SENTENCES[sentence] % written
                if ours(text, reference):
                    found += 1
                elif alone(text, reference):
                    lost.append((kind, text))
    assert not lost
    assert found > 1000
