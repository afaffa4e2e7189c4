"""`metrics.csv`: no step lost, none twice, whatever was being written when the run died."""

from revision.training.metrics_file import MetricsFile, read_metrics, truncate_metrics


def written(path, steps):
    log = MetricsFile(path)
    for step in steps:
        log.log_metrics({"loss": 1 / step, "rate": 0.5}, step)
    return path


def test_numbers_come_back_exactly(tmp_path):
    path = written(tmp_path / "metrics.csv", [1, 2, 3])
    assert read_metrics(path)["loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_truncation_drops_later_steps_and_a_torn_line(tmp_path):
    path = written(tmp_path / "metrics.csv", range(1, 6))
    with path.open("a") as file:
        file.write("3,lo")
    truncate_metrics(path, 3)
    assert [step for step, _ in read_metrics(path)["loss"]] == [1, 2, 3]
    written(path, [4])
    assert [step for step, _ in read_metrics(path)["rate"]] == [1, 2, 3, 4]


def test_a_new_run_has_nothing_to_truncate(tmp_path):
    truncate_metrics(tmp_path / "metrics.csv", 0)
    assert not list(tmp_path.iterdir())
