"""Captions to tokens as captioning's evaluation does it with Java's PTBTokenizer, without Java."""

import re

_L = r"[^\W\d_\u2070-\u209f\u00bc-\u00be\u2150-\u215e\u00b2\u00b3\u00b9]"  # letter
_W = rf"(?:{_L}|\d|[\u0300-\u036f])"  # of a word
_PART = rf"{_W}+(?:-{_L}{_W}*)*"  # of what slashes join
_APOS = r"['\u2019]"
_NUM = r"(?:\d*(?:[.,:]\d+)+|\d+)"
# Abbreviations that keep their period: in any case; capitalized alone; before a number alone.
_ABBREVIATIONS = """
mr mrs ms messrs mme mlle dr drs prof rev hon capt lt lieut sgt col gen maj cpl cmdr comdr pfc pvt adm gov sen
rep pres det supt insp brig asst atty treas mt ft st ste jr sr esq bros inc ltd corp co cos cie bhd univ dept
assn assoc ave blvd bldg rd ct sq vs etc al cf tel est ext ph ph.d intl int'l natl elec invt adj adv
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
ala ariz calif colo conn dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wyo
"""
_CAPITALIZED = "ark del ill la mass mfg miss ore pa tex wash"
_NUMBERED = "art fig figs no nos op pp prop"
# What is one token, by kind; of those that match at a place the longest is taken, of equals the first.
_KINDS = [
    r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
    r"(?:www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
    r"|(?:[^\s\"`'<>|.!?(){},_$-]+\.)+(?:com|net|org|edu))(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
    rf"{_W}[^\s\"<>|()]*@[^\s\"<>|().]+(?:\.[^\s\"<>|().]+)*",
    rf"[@#]{_L}{_W}*",
    r"</?[A-Za-z][^<>\n]*>",
    rf"{_W}+(?:[-_]{_W}+)*",
    rf"{_PART}(?:/{_PART}){{1,2}}",
    rf"{_L}+(?:[.!?]{_L}+)+|{_W}*{_L}{_W}*(?:\.{_L}+)+|\d\.[xX](?!\w)",
    r"[A-Z]+(?:&[A-Z]+)+",
    rf"[A-Za-z](?:\.[A-Za-z])*\.(?:-{_W}+)*",
    rf"[-+]?{_NUM}(?:-{_W}+)*",
    rf"[A-HJ-XZa-hj-xz]?{_APOS}n{_APOS}",
    rf"(?:[OoDdLl]|qu|Qu|[A-HJ-XZ]){_APOS}{_L}{{2,}}",
    rf"{_L}+[aeiouy]{_APOS}[aeiouAEIOU]{_L}*",
    rf"ol{_APOS}|(?i:ma{_APOS}am|cap{_APOS}n|[en]e?{_APOS}er"
    rf"|c{_APOS}mon|s{_APOS}mores?|nat{_APOS}l|li{_APOS}l)(?!{_W})|(?i:dunkin|somethin){_APOS}(?!{_W})|{_APOS}[2-9]0s",
    rf"{_APOS}(?i:em|cause|till?|n)(?!{_W})",
    r"[Cc]\+\+|[CcFf]#(?!\w)|US\$",
    r"\(\d{3}\)",
    rf"(?i:y){_APOS}(?={_L})",
    rf"{_APOS}(?i:s|m|d|ll|re|ve)(?!{_W})",
    r"[<>]?[:;=][-o*']?[()DPdpO\\:{@|\[\]](?!\w)",
    r"[!?]+",
    r"\*+|#+|_+|@+|\.+|-+|:+|<<|>>",
    r"\S",
]
_RULES = [re.compile(kind) for kind in _KINDS]
_ABBREVIATION = re.compile(
    rf"(?i:(?:{'|'.join(map(re.escape, _ABBREVIATIONS.split()))})\.(?!{_L})"
    rf"|(?-i:(?=[A-Z]))(?:{'|'.join(_CAPITALIZED.split())})\.(?!{_L})"
    rf"|(?:{'|'.join(_NUMBERED.split())})\.(?=\s*\d))"
)
# A word before n't, and words that are written as one.
_NEGATED = re.compile(rf"{_L}+?(?=n{_APOS}t(?!{_W}))|n{_APOS}t(?!{_W})", re.IGNORECASE)
_JOINED = re.compile(
    rf"(can)(not)|(gon)(na)|(got)(ta)|(lem)(me)|(gim)(me)|(wan)(na)|({_APOS}t)(is|was)",
    re.IGNORECASE,
)
_REPLACED = {
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "\u00ad": "",
    "\u00bd": " 1/2 ", "\u00bc": " 1/4 ", "\u00be": " 3/4 ", "\u2153": " 1/3 ", "\u2154": " 2/3 ",
    "\u00a2": " cents ", "\u00a3": " # ", "\u20ac": " $ ", "\u200b": " ", "\u2013": " -- ", "\u2014": " -- ",
}  # fmt: skip
_REPLACE = re.compile("|".join(map(re.escape, _REPLACED)))
_CLITIC = re.compile(r"\u2019(?:s|m|d|ll|re|ve)|n\u2019t")
_BRACKETS = dict(zip("()[]{}", ("lrb", "rrb", "lsb", "rsb", "lcb", "rcb"), strict=True))
_PUNCTUATION = set("'\"`\u2018\u2019\u201c\u201d.?!,:;-\u2026")


def tokenize(text: str) -> list[str]:
    """Lower-case tokens without punctuation.

    Round, square and curly brackets stay, as ``-lrb-`` and so on: the evaluation takes them out by
    their names in capitals, after they were made lower case.

    Source: pycocoevalcap's ``PTBTokenizer`` (Stanford CoreNLP 3.4.1 with -preserveLines -lowerCase), from its
    behaviour; docs/evaluation.md says how often and where they differ.
    """
    text = _REPLACE.sub(lambda found: _REPLACED[found[0]], text)
    tokens: list[str] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _token(text, at)
        tokens += found
        at += sum(map(len, found))
    return [_written(token) for token in tokens if not _is_punctuation(token)]


def _token(text: str, at: int) -> list[str]:
    """The token at a place; two where a word is split."""
    best = max((m[0] for rule in _RULES if (m := rule.match(text, at))), key=len)
    if (found := _NEGATED.match(text, at)) and len(found[0]) + 3 >= len(best):
        return [found[0]]
    if (found := _ABBREVIATION.match(text, at)) and len(found[0]) >= len(best):
        return [found[0]]
    if (found := _JOINED.match(text, at)) and len(found[0]) >= len(best):
        return [part for part in found.groups() if part]
    return [best]


def _is_punctuation(token: str) -> bool:
    dots_or_dashes = not token.strip(".:") or (not token.strip("-") and len(token) < 5)
    return token in _PUNCTUATION or dots_or_dashes or ord(token[0]) > 0xFFFF


def _written(token: str) -> str:
    for bracket, name in _BRACKETS.items():
        token = token.replace(bracket, f"-{name}-")
    token = token.lower()
    return token.replace("\u2019", "'") if _CLITIC.fullmatch(token) else token
