"""Whether an image is kept, by the size that its header gives."""

from data_prep.config import FilterConfig
from data_prep.schema import Status


def refusal(width: int, height: int, keep: FilterConfig) -> tuple[Status, str] | None:
    """Status and reason of an image that is not kept; the rules do not care which side is which."""
    if width * height > keep.max_pixels:
        reason = f"{width} x {height} is more than {keep.max_pixels} pixels"
        return Status.TOO_MANY_PIXELS, reason
    shorter, longer = min(width, height), max(width, height)
    if shorter < max(1, keep.min_side_pixels):
        return Status.FILTERED_SIZE, f"shorter side {shorter} < {keep.min_side_pixels} pixels"
    if longer > keep.max_aspect_ratio * shorter:
        reason = f"{longer / shorter:.1f} to 1 is more than {keep.max_aspect_ratio:g}"
        return Status.FILTERED_ASPECT_RATIO, reason
    return None
