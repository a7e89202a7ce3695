"""Classifies prompts by a few telling words: enough to notice that the mix of requests has shifted.

A guess from the surface of English text: a prompt without signs of another class is chat. Pure. Takes tens of
microseconds, since only the ends of a long prompt are read.
"""

import enum
import re

_NUM_READ = 300  # characters at either end, where an instruction stands
_WORD = re.compile(r"[a-z]+[+#]*|\d+|```|\?")


class PromptClass(enum.StrEnum):
    CHAT = "chat"
    CODE = "code"
    MATHS = "maths"
    STORY = "story"
    SUMMARY = "summary"
    TRANSLATION = "translation"


_SIGNS = {
    PromptClass.CODE: {
        4: "``` code program programming function algorithm pseudocode python javascript typescript java c++ "
        "c# golang kotlin php ruby sql bash html css",
        3: "compiler recursion regex decorators",
        2: "script bug debug implement api array class method loop database backend rust go",
        1: "string list tree graph import return test tests file",
    },
    PromptClass.MATHS: {
        4: "solve equation integral derivative theorem polynomial triangle probability algebra geometry",
        2: "many much total sum altogether remainder percent average area twice calculate",
        1: "each per half cost costs left times",
    },
    PromptClass.STORY: {
        4: "story stories tale poem haiku fable limerick sonnet screenplay lyrics",
        2: "character plot narrator imagine pretend roleplay novel fictional",
        1: "once upon compose adventure dragon hero",
    },
    PromptClass.SUMMARY: {6: "summarize summarise summary tldr", 2: "shorten points article"},
    PromptClass.TRANSLATION: {
        5: "translate translation",
        2: "english german french spanish italian chinese japanese russian portuguese arabic latin",
    },
}
_WEIGHTS = {
    word: (kind, weight)
    for kind, by_weight in _SIGNS.items()
    for weight, words in by_weight.items()
    for word in words.split()
}
_PER_NUMBER, _MOST_NUMBERS = 1, 3  # numbers of a question speak for maths
_LEAST = 4  # weight below which a prompt is chat


def classify(text: str) -> PromptClass:
    """The class with the greatest weight of words, each counted once."""
    if len(text) > 2 * _NUM_READ:
        text = text[:_NUM_READ] + "\n" + text[-_NUM_READ:]
    words = set(_WORD.findall(text.lower()))
    weights = dict.fromkeys(PromptClass, 0)
    weights[PromptClass.CHAT] = _LEAST - 1
    for word in words & _WEIGHTS.keys():
        kind, weight = _WEIGHTS[word]
        weights[kind] += weight
    if "?" in words:
        weights[PromptClass.MATHS] += min(_MOST_NUMBERS, _PER_NUMBER * sum(map(str.isdigit, words)))
    return max(weights, key=weights.__getitem__)
