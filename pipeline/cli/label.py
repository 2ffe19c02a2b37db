"""`roseate label`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, show_summary


def label(
    images: Annotated[str, typer.Argument(help="folder of the images; or a folder for each class")],
    output: Annotated[Path, typer.Argument(help="dataset folder to make")],
    annotations: Annotated[
        str | None, typer.Option(help="JSON with captions, splits or answers")
    ] = None,
    questions: Annotated[str | None, typer.Option(help="VQAv2's JSON with the questions")] = None,
    layout: Annotated[
        str, typer.Option(help="auto, coco, karpathy, vqa, image_folder or dataset")
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="of a Karpathy split")] = None,
    class_names: Annotated[str | None, typer.Option(help="file with the classes' names")] = None,
    class_form: Annotated[str, typer.Option(help="text of a class")] = "{name}",
    limit: Annotated[int | None, typer.Option(min=1, help="records, drawn by key")] = None,
    max_missing: Annotated[float, typer.Option(help="share of images that may be missing")] = 0.0,
    json_path: Json = None,
) -> None:
    """Make a dataset folder of labelled images, to fine-tune on: captions, questions, or classes."""
    from pipeline.config import check_section
    from pipeline.evaluation.config import EvaluationData
    from pipeline.finetune.label import label_folder
    from pipeline.progress import RunProgress

    values = {
        "path": images,
        "annotations": annotations,
        "questions": questions,
        "layout": layout,
        "split": split,
        "class_names": class_names,
        "limit": limit,
        "max_missing": max_missing,
    }
    data = check_section(EvaluationData, values)
    with RunProgress("label", total=1, done=0, silent=False, unit="image") as progress:

        def advance(done: int, total: int) -> None:
            progress.total = total
            progress.step(done)

        summary = label_folder(data, output, class_form=class_form, advance=advance)
    show_summary(summary, json_path)
