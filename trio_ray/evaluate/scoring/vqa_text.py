"""How VQA answers are made alike before they are compared.

The rules are those of visualqa.org/evaluation.html in the reading of the official script (GT-Vision-Lab/VQA,
PythonEvaluationTools/vqaEvaluation/vqaEval.py), oddities included, so that scores can be compared with published ones.
"""

from __future__ import annotations

import re

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# The official table maps these with one apostrophe left out to the whole; "lets", "shes" and "ill" are not in it.
_WHOLE = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _WHOLE.split() for place, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}

_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def normalised(answer: str) -> str:
    """An answer in the form that is compared: lower case, digits for number words, no articles, no punctuation.

    Apostrophes and colons stay, and so does a period before a digit. A sign becomes nothing where a space stands
    beside it somewhere in the answer, or where the answer has a comma between digits, else a space.
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    words = (NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    closed_up = _NUMBER_WITH_COMMA.search(text) is not None
    bare = text
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        bare = bare.replace(sign, "" if closed_up or beside_space else " ")
    return _PERIOD.sub("", bare)
