"""What was used lately stays, what was used longest ago is let go, and a copy begins empty."""

import copy
import pickle

from pipeline.data.recent import Recent


class Owner:
    def __init__(self) -> None:
        self.made: list[int] = []
        self.gone: list[str] = []
        self.recent = Recent(self.make, 2, self.gone.append)

    def make(self, key: int) -> str:
        self.made.append(key)
        return f"value {key}"


def test_the_one_used_longest_ago_makes_room():
    owner = Owner()
    assert [owner.recent(key) for key in (1, 2, 1, 3, 1, 2)][-1] == "value 2"
    assert owner.made == [1, 2, 3, 2] and owner.gone == ["value 2", "value 3"]
    assert len(owner.recent) == 2


def test_a_copy_begins_empty_and_belongs_to_the_copied_owner():
    owner = Owner()
    owner.recent(1)
    for other in (pickle.loads(pickle.dumps(owner)), copy.deepcopy(owner)):
        assert len(other.recent) == 0
        other.recent(5)
        assert other.made == [1, 5] and owner.made == [1]
