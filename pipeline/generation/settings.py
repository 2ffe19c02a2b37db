"""How a text is continued."""

from dataclasses import dataclass

from data_prep.errors import Problem


@dataclass(frozen=True)
class Sampling:
    """Greedy unless told otherwise.

    Attributes:
        max_new_tokens: generated at most.
        beams: hypotheses kept; 1 for none.
        temperature: of the drawing; 0 draws nothing.
        top_p: mass of the likeliest tokens that are drawn from.
        seed: of the drawing.
    """

    max_new_tokens: int = 32
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def problems(self) -> list[Problem]:
        """What cannot be."""
        found = []
        for key, value, rule, fits in (
            ("--max-new-tokens", self.max_new_tokens, "is 1 or more", self.max_new_tokens >= 1),
            ("--beams", self.beams, "is 1 or more", self.beams >= 1),
            ("--temperature", self.temperature, "is 0 or more", self.temperature >= 0),
            ("--top-p", self.top_p, "is above 0 and at most 1", 0 < self.top_p <= 1),
        ):
            if not fits:
                found.append(Problem(key, value, rule, "see roseate generate --help"))
        if self.temperature and self.beams > 1:
            rule = "is 1 where --temperature draws"
            found.append(Problem("--beams", self.beams, rule, "leave one of the two out"))
        return found

    def of_generate(self) -> dict[str, object]:
        """Arguments of transformers' ``generate``."""
        settings: dict[str, object] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.beams,
        }
        if self.temperature:
            settings |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
            settings["top_k"] = 0  # transformers would draw from the 50 likeliest, untold
        return settings
