import pytest

from data_prep.config import SourceConfig
from data_prep.tables.columns import Columns, resolve

KEY = "ingest.sources.web"


def find(*present, **settings):
    return resolve(present, SourceConfig(table="t", **settings), KEY)


@pytest.mark.parametrize(
    ("present", "settings", "url", "caption"),
    [
        (["URL", "Text"], {}, "URL", "Text"),
        (["link", "url", "say", "text"], {"url_column": "LINK"}, "link", "text"),
        (["url", "text", "say"], {"caption_column": "say"}, "url", "say"),
        (["URL", "url", "text"], {"url_column": "url"}, "url", "text"),
        (["url", "caption", "text"], {}, "url", "text"),
        (["url", "top_caption", "all_captions", "TEXT"], {}, "url", "top_caption"),
        (
            ["url", "top_caption", "all_captions", "TEXT"],
            {"caption_column": "text"},
            *("url", "TEXT"),
        ),
        (["url", "top_caption", "TEXT"], {"layout": "laion_coco"}, "url", "top_caption"),
        (["url", "TEXT"], {"layout": "relaion"}, "url", "TEXT"),
    ],
)
def test_columns_are_found_whatever_their_case_and_named_ones_win(present, settings, url, caption):
    columns = find(*present, **settings)
    assert (columns.url, columns.caption) == (url, caption)


def test_fields_are_kept_in_order_for_text():
    source = SourceConfig(table="t")
    assert resolve(["a", "url", "text"], source, KEY, fields=True).fields == ("a", "url", "text")
    assert resolve(["a", "url", "text"], source, KEY).fields == ()


@pytest.mark.parametrize(
    ("settings", "present", "expected"),
    [
        ({"verify": "sha256"}, ["SHA256"], "SHA256"),
        ({"verify": "md5"}, ["sha256", "md5"], "md5"),
        ({"verify": "phash"}, ["image_phash"], "image_phash"),
        ({"verify": "phash"}, ["image_phash", "phash"], "phash"),
        ({"verify": "md5", "verify_column": "Sum"}, ["md5", "sum"], "sum"),
        ({}, ["sha256", "md5"], None),
    ],
)
def test_the_column_of_hashes_goes_by_the_kind_of_verification(settings, present, expected):
    columns = find("url", "text", *present, **settings)
    assert columns.expected == expected and columns.verify == settings.get("verify", "none")
    assert expected not in columns.keep


@pytest.mark.parametrize(
    ("keep", "kept", "names"),
    [
        (None, ("WIDTH", "similarity"), ("table_WIDTH", "similarity")),
        ([], (), ()),
        (["Mine", "status"], ("mine", "STATUS"), ("mine", "table_STATUS")),
        (["url"], ("url",), ("table_url",)),
    ],
)
def test_kept_columns_never_have_a_name_of_the_ledger(keep, kept, names):
    columns = find("url", "text", "WIDTH", "similarity", "mine", "STATUS", keep_columns=keep)
    assert (columns.keep, columns.kept_names) == (kept, names)


@pytest.mark.parametrize(
    ("present", "settings", "field", "rule", "remedy"),
    [
        (
            ["a", "text"],
            {},
            "url_column",
            "the table must have the column 'url' or 'image_url' or 'img_url'; it has: a, text",
            f"set {KEY}.url_column to one of those",
        ),
        (
            ["url", "b"],
            {"caption_column": "say"},
            "caption_column",
            "the table must have the column 'say'; it has: url, b",
            f"set {KEY}.caption_column to one of those",
        ),
        (
            ["url", "text"],
            {"layout": "laion_coco"},
            "caption_column",
            "the table must have the column 'top_caption'; it has: url, text",
            f"set {KEY}.caption_column to one of those",
        ),
        (
            ["url", "text"],
            {"verify": "phash"},
            "verify",
            "the table must have the column 'phash' or 'image_phash'; it has: url, text",
            "set it to md5, sha256, phash or none, or verify_column to one of those",
        ),
        (
            ["url", "text"],
            {"verify": "md5", "verify_column": "sum"},
            "verify_column",
            "the table must have the column 'sum'; it has: url, text",
            f"set {KEY}.verify_column to one of those",
        ),
        (
            ["url", "text", "md5"],
            {"verify_column": "md5"},
            "verify_column",
            "a column of hashes needs a kind of verification",
            f"set {KEY}.verify to sha256, md5 or phash, or leave the column out",
        ),
        (
            ["url", "text"],
            {"keep_columns": ["TEXT", "a", "b"]},
            "keep_columns",
            "the table must have the columns that are kept; not there: a, b; it has: url, text",
            "correct the names, or leave them out",
        ),
        (
            ["url", "text", "url"],
            {},
            "table",
            "a column that is read must have a name of its own; twice there: url",
            "rename one of them in the table",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(present, settings, field, rule, remedy):
    (problem,) = find(*present, **settings)
    assert (problem.key, problem.rule, problem.remedy) == (f"{KEY}.{field}", rule, remedy)
    assert problem.value == {"table": "t", **settings}.get(field)


def test_all_problems_are_told_at_once():
    problems = find("a", verify="md5", keep_columns=["b"])
    fields = ["url_column", "caption_column", "verify", "keep_columns"]
    assert [problem.key for problem in problems] == [f"{KEY}.{field}" for field in fields]


def test_twins_that_are_not_read_do_not_matter():
    assert isinstance(find("url", "text", "a", "a"), Columns)
