from satm_tf.evaluation.folder import ResultsFolder


def test_every_file_has_its_own_name_inside_the_folder(tmp_path):
    folder = ResultsFolder(tmp_path / "results")
    files = {name: path for name, path in vars(folder).items() if name != "path"}
    assert len(set(files.values())) == len(files) > 9
    assert {path.parent for path in files.values()} == {folder.path}
    assert str(folder) == str(tmp_path / "results")
    assert not folder.path.exists(), "naming files makes none"
