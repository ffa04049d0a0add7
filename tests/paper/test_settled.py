"""The points that the paper leaves open: each is used, and each that is used is there."""

from satm_tf.paper.settled import SETTLED
from satm_tf.paper.tables import TABLES


def test_every_settled_point_is_used():
    used = {name for table in TABLES.values() for name in table.settled}
    assert used | {"curves"} == set(SETTLED)
