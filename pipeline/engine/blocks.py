"""Which moments of a flat tensor are kept in 8 bits: blocks of logical parameters, and the pieces they make."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from pipeline.engine.fragments import BLOCK, Fragment

# Elements that one call of the update may be given: bitsandbytes counts them in 32 bits, and what does not
# fit into them is left as it is without a word.
LARGEST_RUN = 2**30


@dataclass(frozen=True)
class Piece:
    """A run of a fragment whose moments are kept the same way.

    Attributes:
        fragment: the run.
        bits: 8 or 32.
        offset: of its first element among the codes (8) or exact values (32) of the flat tensor.
        block: of its first block among the scales; 0 for 32 bits.
    """

    fragment: Fragment
    bits: int
    offset: int
    block: int = 0

    @property
    def num_blocks(self) -> int:
        return -(-self.fragment.numel // BLOCK)


@dataclass
class Layout:
    """How the moments of one flat tensor are kept: pieces in the order of the tensor."""

    pieces: list[Piece] = field(default_factory=list)
    num_codes: int = 0
    num_blocks: int = 0
    num_exact: int = 0

    def add(self, fragment: Fragment | None, bits: int) -> None:
        """Append a run; 8 bits only where it begins with a block and ends with one or with the parameter."""
        if fragment is None:
            return
        if bits == 32:
            self.pieces.append(Piece(fragment, 32, self.num_exact))
            self.num_exact += fragment.numel
            return
        piece = Piece(fragment, 8, self.num_codes, self.num_blocks)
        self.pieces.append(piece)
        self.num_codes += fragment.numel
        self.num_blocks += piece.num_blocks

    def quantised_runs(self) -> list[tuple[int, int, int, int]]:
        """(offset in the flat tensor, offset of the codes, of the scales, numel) of each call of the update.

        Pieces that follow one another in all three are one, unless the first ends within a block or they
        are too many elements together.
        """
        runs: list[list[int]] = []
        for piece in self.pieces:
            if piece.bits == 32:
                continue
            here = [piece.fragment.offset, piece.offset, piece.block, piece.fragment.numel]
            if runs and runs[-1][3] % BLOCK == 0 and runs[-1][0] + runs[-1][3] == here[0]:
                runs[-1][3] += here[3]
            else:
                runs.append(here)
        return [
            (offset + done, codes + done, block + done // BLOCK, min(LARGEST_RUN, numel - done))
            for offset, codes, block, numel in runs
            for done in range(0, numel, LARGEST_RUN)
        ]

    def exact_runs(self) -> list[tuple[int, int]]:
        """(offset in the flat tensor, numel) of what is kept in 32 bits, in the order it is kept."""
        return [(p.fragment.offset, p.fragment.numel) for p in self.pieces if p.bits == 32]


def lay_out(
    fragments: Iterable[Fragment], bits: int, min_8bit_numel: int, kept: dict[str, Collection[int]]
) -> Layout:
    """Which elements of a flat tensor have moments of 8 bits.

    Args:
        fragments: what it holds, in its order.
        bits: of its parameter group; with 32 nothing is quantised.
        min_8bit_numel: a parameter with fewer elements keeps 32 bits.
        kept: by name of a logical parameter, the numbers of the blocks that have 32 bits already.
    """
    layout = Layout()
    for fragment in fragments:
        if bits == 32 or fragment.total < min_8bit_numel:
            layout.add(fragment, 32)
            continue
        start, stop = fragment.start, fragment.start + fragment.numel
        first = -(-start // BLOCK) * BLOCK
        last = stop if stop == fragment.total else stop // BLOCK * BLOCK
        if first >= last:
            layout.add(fragment, 32)
            continue
        layout.add(fragment.cut(start, first), 32)
        low = first
        for block in sorted(kept.get(fragment.name, ())):
            begin, end = block * BLOCK, min((block + 1) * BLOCK, fragment.total)
            if begin < first or end > last:
                continue
            layout.add(fragment.cut(low, begin), 8)
            layout.add(fragment.cut(begin, end), 32)
            low = end
        layout.add(fragment.cut(low, last), 8)
        layout.add(fragment.cut(last, stop), 32)
    return layout
