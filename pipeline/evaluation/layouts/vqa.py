"""VQAv2: a file of questions, one of annotations with people's answers, and a folder of images."""

from pipeline.evaluation.layouts.draft import Draft, Found
from pipeline.evaluation.layouts.faults import BELOW, Faults, is_below

# One right answer is left out and three of the others make an answer right.
FEWEST_ANSWERS = 4


def read_vqa(
    questions: dict, annotations: dict, in_questions: Faults, in_annotations: Faults
) -> Found:
    """A record a question, with people's answers; `kind` is the answer's type.

    Images are files named by COCO's rule (``COCO_val2014_000000000042.jpg``, or
    ``000000000042.jpg`` since 2017), or by the plain number, in the folder or in the one below it
    that is named as the files' ``data_subtype`` (``val2014``).

    Args:
        questions: the file of questions.
        annotations: the file of answers; those of other questions are counted and left out.
        in_questions: gets what is broken in the questions.
        in_annotations: gets what is broken in the answers.
    """
    answers: dict[str, tuple[tuple[str, ...], str | None, str | None]] = {}
    for where, entry in in_annotations.entries(annotations, "annotations"):
        number = in_annotations.number(entry, "question_id", where)
        image = in_annotations.number(entry, "image_id", where) if "image_id" in entry else None
        texts = [
            in_annotations.text(answer, "answer", f"{where}.{place}")
            for place, answer in in_annotations.entries(entry, "answers")
        ]
        if len(texts) < FEWEST_ANSWERS:
            rule = f"every question has answers of at least {FEWEST_ANSWERS} people, VQAv2 of ten"
            in_annotations.add(rule, "name annotations with all people's answers", where)
        if number in answers:
            rule = "every question has one annotation"
            in_annotations.add(rule, "remove one of the two", where)
        if number is not None:
            kind = entry.get("answer_type")
            right = tuple(text for text in texts if text is not None)
            answers[number] = (right, kind if isinstance(kind, str) else None, image)
    subtype = questions.get("data_subtype") or annotations.get("data_subtype")
    subtype = subtype if isinstance(subtype, str) and is_below(subtype) else None
    drafts: dict[str, Draft] = {}
    entries = in_questions.entries(questions, "questions")
    for where, entry in entries:
        number = in_questions.number(entry, "question_id", where)
        image = in_questions.number(entry, "image_id", where)
        text = in_questions.text(entry, "question", where)
        if number is None or image is None or text is None:
            continue
        if not is_below(image):
            in_questions.add(BELOW.format("image_id"), "correct the file", where)
            continue
        if number in drafts:
            rule = "every question has a question_id of its own"
            in_questions.add(rule, "remove one of the two", where)
        if number not in answers:
            rule = "every question has an annotation"
            remedy = "name the annotations of these questions (a test split has none)"
            in_questions.add(rule, remedy, f"question {number}")
            continue
        right, kind, other = answers[number]
        if other is not None and other != image:
            rule = "question and annotation are of the same image"
            in_questions.add(rule, "name two files of one release", f"question {number}")
        names = image_names(image, subtype)
        drafts[number] = Draft(number, names, right, question=text, kind=kind, image_key=image)
    counts = {"found": len(entries), "other_annotations": len(answers.keys() - drafts.keys())}
    return Found([*drafts.values()], counts | {"in_split": len(drafts)})


def image_names(image: str, subtype: str | None) -> tuple[str, ...]:
    """Files that the image of a number may be, likeliest first."""
    if image.isascii() and image.isdecimal():
        long = f"{image.zfill(12)}.jpg"
        names = [f"COCO_{subtype}_{long}", long] if subtype else [long]
        names += [f"{image}{extension}" for extension in (".jpg", ".jpeg", ".png")]
    else:
        names = [image, *(f"{image}{extension}" for extension in (".jpg", ".jpeg", ".png"))]
    if subtype:
        names += [f"{subtype}/{name}" for name in names]
    return tuple(names)
