import pytest

from data_prep.config import SourceConfig
from data_prep.tables.columns import resolve
from data_prep.tables.layouts import LAYOUTS, recognise

LAION = ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]
JOINED = ["URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "hash", "punsafe", "pwatermark"]
COCO = [*JOINED, "top_caption", "all_captions", "all_similarities"]
DATACOMP = [
    *("uid", "url", "text", "original_width", "original_height", "clip_b32_similarity_score"),
    *("clip_l14_similarity_score", "face_bboxes", "sha256"),
]
COYO = ["id", "url", "text", "width", "height", "image_phash", "num_faces", "watermark_score"]


@pytest.mark.parametrize(
    ("present", "name", "caption", "dropped"),
    [
        (LAION, "laion2b", "TEXT", []),
        ([*LAION, "LANGUAGE"], "laion2b", "TEXT", []),
        (JOINED, "relaion", "TEXT", []),
        (["key", *JOINED, "aesthetic"], "relaion", "TEXT", ["key"]),
        (COCO, "laion_coco", "top_caption", ["all_captions", "all_similarities"]),
        (DATACOMP, "datacomp", "text", []),
        (COYO, "coyo", "text", []),
        (["url", "caption"], "generic", "caption", []),
        (["image_url", "Caption", "similarity", "mine"], "generic", "Caption", ["mine"]),
    ],
)
def test_a_layout_is_known_by_its_columns_in_any_case_and_order(present, name, caption, dropped):
    for names in (present, present[::-1], [n.upper() for n in present]):
        assert recognise(names) == name
    columns = resolve(present, SourceConfig(table="t"), "k")
    assert (columns.layout, columns.caption) == (name, caption)
    used = {columns.url, columns.caption, *columns.keep}
    assert [n for n in present if n not in used] == dropped
    again = resolve(present, SourceConfig(table="t", layout=name), "k")
    assert again == columns


def test_every_layout_of_the_settings_is_there():
    names = SourceConfig.model_json_schema()["properties"]["layout"]["enum"]
    assert {*names} == {"auto", *LAYOUTS}
