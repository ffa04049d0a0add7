import numpy as np
import pytest
import tensorflow as tf

prediction_log_pb2 = pytest.importorskip(
    "tensorflow_serving.apis.prediction_log_pb2", reason="needs the extra `client`"
)


def test_the_official_protos_read_every_record_and_each_runs(exported, served):
    path = exported.folder / "assets.extra" / "tf_serving_warmup_requests"
    seen = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        # Nothing that the protos do not know, and nothing lost: they write the same bytes.
        assert log.SerializeToString(deterministic=True) == record
        request = log.predict_log.request
        assert request.model_spec.name == "faces"
        ((name, tensor),) = request.inputs.items()
        batch = tf.make_ndarray(tensor)
        answer = served[request.model_spec.signature_name](**{name: tf.constant(batch)})
        assert answer["valid"].numpy().tolist() == [True] * len(batch)
        seen.append((request.model_spec.signature_name, name, len(batch)))
    assert sorted(seen) == sorted(
        (signature, name, count)
        for signature, name in (("serving_default", "images"), ("serving_bytes", "image_bytes"), ("features", "images"))
        for count in (1, 4)
    )


def test_lengths_on_the_wire(tmp_path):
    """A varint takes a byte for each seven bits: names around the lengths where it grows."""
    from satm_tf.serving.warmup import write_warmup

    for length in (0, 1, 127, 128, 16383, 16384):
        path = write_warmup(tmp_path, "m" * length, [("s", {"x": np.zeros([length], np.uint8)})])
        (record,) = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert len(request.model_spec.name) == length
        assert tf.make_ndarray(request.inputs["x"]).shape == (length,)
