"""The chat page as one visitor has it: images in, text out, and where the model looked for each word."""

import base64
import io
from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING

from nicegui import run, ui
from PIL import Image

from data_prep.errors import ConfigError, Problem
from data_prep.image.formats import DECODE_ERRORS, FORMATS
from pipeline.chat.desk import Desk, Shown, answer
from pipeline.generation.settings import Sampling
from pipeline.trained import Trained

if TYPE_CHECKING:
    from nicegui import events

MOST_BYTES = 50_000_000  # of an image that is dropped in
SETTINGS = (  # name, what it is, least, most, step
    ("max_new_tokens", "Tokens at most", 1, None, 1),
    ("beams", "Beams (1: greedy)", 1, None, 1),
    ("temperature", "Temperature (0: always the likeliest)", 0, None, 0.1),
    ("top_p", "Share of the likeliest tokens drawn from", 0.05, 1, 0.05),
    ("seed", "Seed of the drawing", 0, None, 1),
)


class Page:
    """One visitor's page.

    Args:
        models: that are asked, one beside the other.
    """

    def __init__(self, models: list[Trained]) -> None:
        self.models, self.desk = models, Desk()
        self.columns = 6 if len(models) == 1 else 3

    def build(self) -> None:
        """Lay the page out."""
        ui.query("body").style("background: #f6f6f4")
        # How much was sent is of no use where a file is shown as soon as it is there.
        ui.add_css(".q-uploader__subtitle { display: none } .q-uploader__list { min-height: 2rem }")
        with ui.column().classes("w-full max-w-screen-2xl mx-auto p-4 gap-4"):
            ui.label("What does the model see?").classes("text-2xl")
            with ui.row().classes("w-full items-start gap-6"):
                with ui.column().classes("w-80 gap-3"):
                    self._inputs()
                beside = " lg:grid-cols-2" if len(self.models) > 1 else ""
                with ui.element("div").classes(f"grow basis-0 min-w-80 grid gap-4{beside}"):
                    self.answers = [self._panel(model) for model in self.models]

    def _inputs(self) -> None:
        self._upload("Drop images here, or press +", self._add_image).mark("images")
        self.shown = ui.row().classes("w-full gap-2")
        ui.input("Beginning of the text (empty: a caption)").bind_value(
            self.desk, "prompt"
        ).classes("w-full").mark("prompt")
        ui.label(
            "<image> in the text says where an image stands; without, all stand in front."
        ).classes("text-xs text-gray-600")
        with ui.expansion("Examples in front (few-shot)").classes("w-full"):
            self._upload("Drop images of examples here", self._add_example).mark("examples")
            self.examples = ui.column().classes("w-full")
        with ui.expansion("How the text is continued").classes("w-full"):
            self.numbers = {
                name: ui.number(
                    label, value=getattr(Sampling(), name), min=least, max=most, step=step
                )
                .classes("w-full")
                .mark(name)
                for name, label, least, most, step in SETTINGS
            }
        with ui.row().classes("w-full items-center"):
            self.button = ui.button("Ask", on_click=self._ask).mark("ask")
            ui.button("Clear", on_click=self._clear).props("flat").mark("clear")
            self.busy = ui.spinner(size="md")
            self.busy.set_visibility(False)
        self.trouble = ui.label().classes("text-red-700 whitespace-pre-line").mark("trouble")

    def _upload(self, label: str, add) -> ui.upload:
        upload = ui.upload(
            label=label,
            multiple=True,
            auto_upload=True,
            max_file_size=MOST_BYTES,
            on_upload=add,
            on_rejected=lambda: self.trouble.set_text(
                f"A file was not taken: images of at most {MOST_BYTES // 1_000_000} MB are."
            ),
        )
        return upload.props('accept="image/*" flat bordered').classes("w-full")

    def _panel(self, model: Trained) -> dict:
        with ui.card().classes("w-full"):
            ui.label(f"{model.config.name}, step {model.step:,}").classes("text-lg")
            ui.label(str(model.checkpoint)).classes("text-xs text-gray-600 break-all")
            text = ui.label().classes("text-xl").mark("answer")
            told = ui.label().classes("text-xs text-gray-600")
            picture = ui.image().classes("max-w-full").mark("looks")
            picture.set_visibility(False)
        return {"text": text, "told": told, "picture": picture}

    async def _add_image(self, event: "events.UploadEventArguments") -> None:
        shown = Shown(event.file.name, await event.file.read())
        self.desk.images.append(shown)
        event.sender.reset()  # it is shown below
        with self.shown, ui.column().classes("items-center gap-0") as place:
            ui.image(_thumbnail(shown.data)).classes("w-20 h-20").props("fit=contain")
            self._away(self.desk.images, shown, place)

    async def _add_example(self, event: "events.UploadEventArguments") -> None:
        shown = Shown(event.file.name, await event.file.read())
        self.desk.examples.append(shown)
        event.sender.reset()
        with self.examples, ui.row().classes("w-full items-center no-wrap") as place:
            ui.image(_thumbnail(shown.data)).classes("w-16 h-16").props("fit=contain")
            ui.input("Its text").bind_value(shown, "text").classes("grow").mark("example text")
            self._away(self.desk.examples, shown, place)

    def _away(self, held: list[Shown], shown: Shown, place: ui.element) -> None:
        """A button that takes one image away."""

        def take() -> None:
            held[:] = [other for other in held if other is not shown]
            place.delete()

        button = ui.button(icon="close", on_click=take).props("flat dense round size=sm")
        button.tooltip(f"take {shown.name} away").mark("away")

    async def _ask(self) -> None:
        self.trouble.set_text("")
        told = {name: number.value for name, number in self.numbers.items()}
        if missing := [label for name, label, *_ in SETTINGS if told[name] is None]:
            self.trouble.set_text(f"{missing[0]}: is a number. Write one.")
            return
        # What is laid out later is for the next question.
        desk = replace(
            self.desk,
            images=[*self.desk.images],
            examples=[*self.desk.examples],
            sampling=Sampling(
                **{
                    n: float(v) if n in ("temperature", "top_p") else int(v)
                    for n, v in told.items()
                }
            ),
        )
        self.button.disable()
        self.busy.set_visibility(True)
        try:
            for model, panel in zip(self.models, self.answers, strict=True):
                await self._ask_one(model, desk, panel)
        finally:
            self.button.enable()
            self.busy.set_visibility(False)

    async def _ask_one(self, model: Trained, desk: Desk, panel: dict) -> None:
        _empty(panel)
        panel["text"].set_text("...")
        try:
            text, picture = await run.io_bound(answer, model, desk, self.columns)
        except ConfigError as error:
            self.trouble.set_text("\n".join(map(_told, error.problems)))
            panel["text"].set_text("")
            return
        panel["text"].set_text(text or "(nothing)")
        if picture is not None:
            panel["told"].set_text("Bright is where it looked when it was about to say the word.")
            panel["picture"].style(f"width: {picture.width}px")
            panel["picture"].set_source(_as_source(picture))
            panel["picture"].set_visibility(True)

    def _clear(self) -> None:
        self.desk.images.clear()
        self.desk.examples.clear()
        self.shown.clear()
        self.examples.clear()
        self.trouble.set_text("")
        for panel in self.answers:
            _empty(panel)


def _empty(panel: dict) -> None:
    panel["text"].set_text("")
    panel["told"].set_text("")
    panel["picture"].set_visibility(False)


def _told(problem: Problem) -> str:
    value = "" if problem.value in (None, "") else f" {shorten(str(problem.value), 60)}"
    return f"{problem.key}{value}: {problem.rule}. Do: {problem.remedy}."


def _thumbnail(data: bytes) -> str:
    """A picture for the page, or a grey square where it cannot be decoded; asking says why."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        picture.draft("RGB", (160, 160))
        picture = picture.convert("RGB")
        picture.thumbnail((160, 160))
    except DECODE_ERRORS:
        picture = Image.new("RGB", (80, 80), "lightgrey")
    return _as_source(picture)


def _as_source(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
