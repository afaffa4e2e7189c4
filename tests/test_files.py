"""Errors of the system while an artefact is written."""

import errno

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from revision.files import replacing_directory, saving

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("error", [SafetensorError(FULL), OSError(errno.ENOSPC, "No space left")])
def test_a_full_disk_while_weights_are_saved_is_one_clear_sentence(tmp_path, error):
    clear = r"encoder: cannot be written \(No space left.*MiB are free there\. Free some space"
    with pytest.raises(ValueError, match=clear), saving(tmp_path / "encoder"):
        raise error


def test_safetensors_names_an_error_of_the_system_as_expected(tmp_path):
    absent = tmp_path / "absent"
    with pytest.raises(ValueError, match=r"\(No such file or directory\)"), saving(absent):
        save_file({"a": torch.zeros(1)}, absent / "model.safetensors")


def test_an_error_that_is_not_of_the_system_keeps_its_words(tmp_path):
    with pytest.raises(ValueError, match=r"\(no number here\)"), saving(tmp_path):
        raise SafetensorError("no number here")


def test_weights_can_be_read_by_whoever_reads_the_rest(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"x")
    elsewhere.chmod(0o600)
    with replacing_directory(tmp_path / "made") as new:
        (new / "config.json").write_text("{}")
        save_file({"w": torch.zeros(1)}, new / "model.safetensors")
        (new / "link").hardlink_to(elsewhere)
    made = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    assert made["model.safetensors"] == made["config.json"]
    assert made["link"] == 0o600
