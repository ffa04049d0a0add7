import pytest

from satm_tf.data import Account

ACCOUNT = Account(
    rows=10,
    used=4,
    mapped={("35", "25-32"): 2},
    left_out={"age 'None'": 3},
    missing=("a.jpg", "b.jpg"),
    unreadable={"c.jpg": "empty file"},
    duplicates=(("d.jpg", "e.jpg"),),
)


def test_reads_well():
    assert str(ACCOUNT).splitlines() == [
        "10 rows, 4 used",
        "  mapped: '35' to '25-32': 2",
        "  left out, age 'None': 3",
        "  missing files: 2 (a.jpg, b.jpg)",
        "  unreadable files: 1 (c.jpg: empty file)",
        "  images under several names: 1 (d.jpg = e.jpg)",
    ]


def test_names_three_files_at_most():
    assert str(Account(rows=4, used=0, missing=tuple("abcd"))).endswith("missing files: 4 (a, b, c, ...)")


def test_one_row_is_one_row():
    assert str(Account(rows=1, used=1)) == "1 row, 1 used"


@pytest.mark.parametrize("rows", [9, 11])
def test_must_add_up(rows):
    with pytest.raises(ValueError, match=rf"Received: 4 \+ 3 \+ 2 \+ 1 != {rows}"):
        Account(rows, 4, {}, ACCOUNT.left_out, ACCOUNT.missing, ACCOUNT.unreadable)


def test_without_keeps_adding_up():
    later = ACCOUNT.without({"d.jpg": "does not decode"})
    assert (later.used, later.rows) == (3, 10)
    assert list(later.unreadable) == ["c.jpg", "d.jpg"]
    later = ACCOUNT.without(left_out={"too small": 2})
    assert (later.used, later.rows, later.left_out) == (2, 10, {"age 'None'": 3, "too small": 2})
