from satm_tf.configurable import unknown_name


def test_names_the_kind_the_nearest_and_what_was_received():
    message = str(unknown_name("attack", "FGMS", ["fgsm", "step_ll"]))
    assert message == "Unknown attack. Did you mean 'fgsm'? Available: fgsm, step_ll. Received: 'FGMS'"


def test_nothing_near_and_nothing_available():
    assert str(unknown_name("attack", "xyz", [])) == "Unknown attack. Available: none. Received: 'xyz'"
