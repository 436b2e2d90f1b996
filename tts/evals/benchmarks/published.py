"""Published benchmarks by name. A comment above each shows a row as it is published, shortened.

A revision is a commit of the data set if one was known for certain when this was written; "main" is the latest version on the
hub. If copies of a benchmark name their fields differently, those names are listed as well, for --data-dir.
"""

from __future__ import annotations

from tts.evals.benchmarks.source import BOXED, Source, after_hashes, boxed_answer, joined, verbatim, whole_number

PUBLISHED = {
    # {"question": "Natalia sold clips to 48 of her friends …", "answer": "… 48+24 = <<48+24=72>>72 clips …\n#### 72"}
    "gsm8k": Source(
        hub="openai/gsm8k",
        config="main",
        revision="e53f048856ff4f594e959d75785d2c2d37b678ee",
        question=("question",),
        answer={"answer": after_hashes},
        strict=True,
        instruction=BOXED,
    ),
    # {"problem": "Convert the point $(0,3)$ …", "solution": "…", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
    #  "subject": "Precalculus", "level": 2, "unique_id": "test/precalculus/807.json"}
    "math500": Source(
        hub="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        id=("unique_id",),
        strict=True,
        instruction=BOXED,
    ),
    # {"id": 60, "problem": "Every morning Aya …", "solution": "…", "answer": "204", "url": "https://…", "year": "2024"}
    "aime24": Source(
        hub="HuggingFaceH4/aime_2024",
        split="train",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        question=("problem", "Problem"),
        answer={"answer": whole_number, "Answer": whole_number},
        id=("id", "ID"),
        strict=True,
        instruction=BOXED,
    ),
    # {"problem": "Find the sum of all integer bases $b>9$ …", "answer": "70", "id": "0"}
    "aime25": Source(
        hub="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        question=("problem", "question", "Problem"),
        answer={"answer": whole_number, "Answer": whole_number},
        id=("id", "ID"),
        strict=True,
        instruction=BOXED,
    ),
    # {"id": 0, "question": "Cities $A$ and $B$ are $45$ miles apart. …", "answer": "27.0", "url": "https://…"}
    "amc23": Source(
        hub="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        question=("question", "problem"),
        answer={"answer": whole_number},
        strict=True,
        instruction=BOXED,
    ),
    # {"question": "Each of the two Magellan telescopes has a diameter of …", "answer": "7.6"}; other copies have
    # {"problem": "…", "type": "…", "solution": "… \\boxed{7.6}", "idx": 0}
    "minerva": Source(
        hub="math-ai/minervamath",
        question=("question", "problem"),
        answer={"answer": verbatim, "solution": boxed_answer},
        id=("id", "idx"),
        strict=True,
        instruction=BOXED,
    ),
    # {"id": 1606, "question": "Let $T$ be …", "solution": ["…"], "final_answer": ["2"], "is_multiple_answer": false,
    #  "answer_type": "Numerical", "modality": "Text-only", "subject": "Math", "language": "English",
    #  "question_type": "Open-ended", …}
    "olympiadbench": Source(
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        question=("question",),
        answer={"final_answer": joined},
        only={"modality": "Text-only", "subject": "Math", "language": "English", "question_type": "Open-ended"},
        strict=True,
        instruction=BOXED,
    ),
    # {"Question": "Two quantum states …", "Correct Answer": "10^-4 eV\n", "Incorrect Answer 1": "10^-11 eV\n",
    #  "Incorrect Answer 2": "…", "Incorrect Answer 3": "…", "Record ID": "rec06pnAkLOr2t2mp", …}; its terms must be accepted
    # on the hub
    "gpqa-diamond": Source(
        hub="Idavidrein/gpqa",
        config="gpqa_diamond",
        split="train",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        question=("Question",),
        answer={"Correct Answer": verbatim},
        wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        id=("Record ID",),
        grader="letter",
        strict=True,
    ),
}
