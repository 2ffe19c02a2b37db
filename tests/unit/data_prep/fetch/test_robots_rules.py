import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego
from yarl import URL

from data_prep.fetch.robots_rules import ALL_ALLOWED, MAX_BYTES, RobotsRules

SITE = "http://a.example"
TWICE = """User-agent: roseate
Disallow: /a

User-agent: b
Disallow: /b

User-agent: roseate
Disallow: /c
"""


def allowed(text, *paths, agent="roseate"):
    rules = RobotsRules(text, agent)
    return [rules.allow(URL(SITE + path)) for path in paths]


@pytest.mark.parametrize(
    ("text", "path", "may"),
    [
        ("", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\nDisallow:", "/x", True),
        ("Disallow: /", "/x", True),  # no group
        # RFC 9309 section 2.2.1: which group
        ("User-agent: roseate\nDisallow: /", "/x", False),
        ("user-AGENT : ROSEATE # us\nDISALLOW : /", "/x", False),
        ("User-agent: roseate/1.0\nDisallow: /", "/x", False),
        ("User-agent: rose\nDisallow: /", "/x", True),
        ("User-agent: roseate-news\nDisallow: /", "/x", True),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("User-agent: *\nDisallow: /\nUser-agent: roseate\nAllow: /", "/x", True),
        ("User-agent: *\nDisallow: /\nUser-agent: roseate\nDisallow:", "/x", True),
        ("User-agent: *\nDisallow: /\nUser-agent: rose\nAllow: /", "/x", False),
        ("User-agent: roseate\nDisallow: /a\nUser-agent: *\nDisallow: /b", "/b", True),
        # groups of the same agent are one
        (TWICE, "/a", False),
        (TWICE, "/b", True),
        (TWICE, "/c", False),
        ("User-agent: a\nUser-agent: roseate\nUser-agent: b\nDisallow: /x", "/x", False),
        ("User-agent: a\nUser-agent: roseate\nDisallow: /a\nUser-agent: b\nDisallow: /x", "/x", True),
        # other records do not end a group
        ("User-agent: a\nSitemap: http://s\nUser-agent: roseate\nDisallow: /x", "/x", False),
        ("User-agent: roseate\nCrawl-delay: 3\nDisallow: /x", "/x", False),
        # lines end as they like; a mark of byte order may come first
        ("\ufeffUser-agent: roseate\rDisallow: /a\r\n\r\nDisallow: /x", "/x", False),
        # section 2.2.2: the longest match, allow where equal
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: /example/page/\nAllow: /example/page/*.gif", "/example/page/x.gif", True),
        ("User-agent: *\nDisallow: /A", "/a", True),
        ("User-agent: *\nDisallow: /\nAllow: /robots.txt", "/robots.txt", True),
        ("User-agent: *\nDisallow: /", "/robots.txt", True),
        # section 2.2.3: special characters
        ("User-agent: *\nDisallow: /*.jpg$", "/a/b.jpg", False),
        ("User-agent: *\nDisallow: /*.jpg$", "/a/b.jpg?x=1", True),
        ("User-agent: *\nDisallow: *x=1", "/a/b.jpg?x=1", False),
        ("User-agent: *\nDisallow: /a?x=1", "/a?x=1&y=2", False),
        ("User-agent: *\nDisallow: /a$", "/a", False),
        ("User-agent: *\nDisallow: /a$", "/ab", True),
        ("User-agent: *\nDisallow: /foo/bar/%E3%83%84", "/foo/bar/\u30c4", False),
        ("User-agent: *\nDisallow: /foo/bar/\u30c4", "/foo/bar/%E3%83%84", False),
        ("User-agent: *\nDisallow: /foo/bar/%62%61%7A", "/foo/bar/baz", False),
        ("User-agent: *\nDisallow: /foo/bar/baz", "/foo/bar/%62%61z", False),
        # what is meant, though wrongly written
        ("User-agent: *\nDissallow: /x", "/x", False),
        ("User-agent roseate\nDisallow /x", "/x", False),
        ("<html>not found</html>", "/x", True),
    ],
)  # fmt: skip
def test_rules(text, path, may):
    assert allowed(text, path) == [may]


def test_a_delay_is_noticed_in_our_group_alone():
    assert RobotsRules("User-agent: *\nCrawl-delay: 10", "roseate").wants_delay
    text = "User-agent: *\nCrawl-delay: 10\nUser-agent: roseate\nDisallow: /x"
    assert not RobotsRules(text, "roseate").wants_delay
    assert not RobotsRules("User-agent: *\nCrawl-delay: 0", "roseate").wants_delay


def test_weight_grows_with_the_rules_that_are_kept():
    many = "User-agent: {}\n" + "Disallow: /x\n" * 1000
    assert RobotsRules(many.format("other"), "roseate").weight == ALL_ALLOWED.weight
    assert RobotsRules(many.format("*"), "roseate").weight > 600_000


def test_the_largest_file_is_read_and_judged_in_time():
    text = "User-agent: *\n" + "".join(f"Disallow: /{i}*a*b*c\n" for i in range(40_000))
    assert allowed(text[:MAX_BYTES], "/" + "a" * 2000) == [True]


characters = st.text("/ab*$.?=&%41Z", max_size=6)
patterns = characters.map(lambda text: f"/{text}") | characters.map(lambda text: f"*{text}")


@given(
    st.lists(st.tuples(st.sampled_from(["Allow", "Disallow"]), patterns), max_size=6),
    st.text("/ab.?=&Z", max_size=8),
)
def test_the_short_cut_never_changes_an_answer(rules, path):
    text = "\n".join(["User-agent: *", *(f"{key}: {pattern}" for key, pattern in rules)])
    url = URL(f"{SITE}/{path}")
    assert RobotsRules(text, "roseate").allow(url) is Protego.parse(text).can_fetch(str(url), "x")
